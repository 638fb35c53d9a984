package agents

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	hostName = regexp.MustCompile(`^(\*\.)?[a-z0-9-]+(\.[a-z0-9-]+)+$`)
	sum      = regexp.MustCompile(`^[0-9a-f]{128}$`)
	variable = regexp.MustCompile(`\$([A-Z][A-Z0-9_]+)`)
	// unpinned reports versions that are chosen when the image is built.
	unpinned = regexp.MustCompile(`@latest|npm install|curl|wget`)
)

// TestKinds checks the file of each kind.
func TestKinds(t *testing.T) {
	if !slices.Contains(Names(), Default) || len(Names()) < 11 {
		t.Fatalf("kinds %q", Names())
	}
	for _, name := range Names() {
		t.Run(name, func(t *testing.T) {
			k := Get(name)
			if k.Title == "" || len(k.Command) == 0 || len(k.Logins) == 0 || k.Name != name {
				t.Errorf("missing title, command, logins or name: %+v", k)
			}
			if len(k.Unattended.Options)+len(k.Unattended.Env)+len(k.Unattended.Files) == 0 {
				t.Error("missing unattended")
			}
			if k.Prompt.Option != "" && k.Prompt.File != "" {
				t.Error("the prompt has both an option and a file")
			}
			hosts := slices.Clone(k.Hosts)
			var logins []File
			for _, l := range k.Logins {
				hosts = append(hosts, l.Hosts...)
				logins = append(logins, l.Files...)
				if l.Get == "" || len(k.Hosts)+len(l.Hosts) == 0 {
					t.Errorf("login %s: missing get or hosts", l.Variable)
				}
			}
			for _, h := range hosts {
				if !hostName.MatchString(h) {
					t.Errorf("invalid host %q", h)
				}
			}
			places := []string{k.Prompt.File, k.Skills}
			for _, f := range slices.Concat(k.Files, k.Unattended.Files, k.Attended.Files, logins) {
				places = append(places, f.Path, f.Moved)
				if f.Format != JSON && f.Format != TOML || len(f.Set) == 0 {
					t.Errorf("%s: format %q, keys %v", f.Path, f.Format, f.Set)
				}
			}
			for _, p := range places {
				if got := k.Place(p, "/home/x", ""); p != "" && !strings.HasPrefix(got, "/home/x/") {
					t.Errorf("%s is at %s", p, got)
				}
			}
		})
	}
}

// TestRecipes checks that recipes name versions and checksums, and use all of them.
func TestRecipes(t *testing.T) {
	for _, name := range Names() {
		k := Get(name)
		if k.Image == nil {
			continue
		}
		script := k.Image.Install
		if unpinned.MatchString(script) || k.Image.Source == "" {
			t.Errorf("%s: a download without a version and a checksum, or no source:\n%s", name, script)
		}
		var args []string
		for _, a := range k.Image.Args {
			arg, value, _ := strings.Cut(a, "=")
			args = append(args, arg)
			// Not every package exists for arm64; the build says so.
			if strings.Contains(arg, "SHA512") && !sum.MatchString(value) && (value != "" || !strings.HasSuffix(arg, "ARM64")) {
				t.Errorf("%s: invalid checksum %s", name, a)
			}
		}
		var used []string
		for _, m := range variable.FindAllStringSubmatch(script, -1) {
			used = append(used, m[1])
		}
		slices.Sort(args)
		slices.Sort(used)
		if used = slices.Compact(used); !slices.Equal(args, used) {
			t.Errorf("%s: arguments %q, and the script uses %q", name, args, used)
		}
	}
}

// TestUnknownKey: a mistyped key of a kind is an error.
func TestUnknownKey(t *testing.T) {
	if _, err := parse("x", []byte("title: X\nhost: [x.test]\n")); err == nil || !strings.Contains(err.Error(), "agents/x.yaml") {
		t.Errorf("got %v", err)
	}
	if _, ok := Lookup("unknown"); ok {
		t.Error("an unknown kind exists")
	}
}

// TestInMode checks where the options of a mode go.
func TestInMode(t *testing.T) {
	for _, c := range []struct {
		kind       string
		command    string
		unattended bool
		want       string
	}{
		{"claude", "claude -p x", true, "claude --dangerously-skip-permissions -p x"},
		{"claude", "claude -p x", false, "claude -p x"},
		{"claude", "/usr/bin/claude", true, "/usr/bin/claude --dangerously-skip-permissions"},
		{"claude", "claude --dangerously-skip-permissions", true, "claude --dangerously-skip-permissions"},
		{"claude", "bash -c claude", true, "bash -c claude"},
		{"cline", "cline", false, "cline --auto-approve false"},
		{"cline", "cline", true, "cline --auto-approve true"},
		{"goose", "goose session", true, "goose session"},
	} {
		command := strings.Fields(c.command)
		if got := strings.Join(Get(c.kind).InMode(command, c.unattended), " "); got != c.want {
			t.Errorf("%s: got %q, want %q", c.command, got, c.want)
		}
		if strings.Join(command, " ") != c.command {
			t.Errorf("%s was changed to %q", c.command, command)
		}
	}
}

// TestHostsWith: an agent of several providers reaches those whose key it has, or else
// the first.
func TestHostsWith(t *testing.T) {
	for _, c := range []struct {
		kind string
		set  []string
		want string
	}{
		{"claude", nil, "api.anthropic.com"},
		{"opencode", nil, "models.opencode.ai opencode.ai"},
		{"opencode", []string{"OPENAI_API_KEY", "OTHER"}, "api.openai.com models.opencode.ai"},
		{"opencode", []string{"OPENAI_API_KEY", "ANTHROPIC_API_KEY"}, "api.anthropic.com api.openai.com models.opencode.ai"},
	} {
		got := Get(c.kind).HostsWith(func(name string) bool { return slices.Contains(c.set, name) })
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s with %q: %q, want %q", c.kind, c.set, got, c.want)
		}
	}
}

func TestOfCommand(t *testing.T) {
	for command, want := range map[string]string{"codex exec": "codex", "/opt/bin/gemini": "gemini", "sh -c codex": "", "": ""} {
		got := ""
		if k := OfCommand(strings.Fields(command)); k != nil {
			got = k.Name
		}
		if got != want {
			t.Errorf("%q is of kind %q, want %q", command, got, want)
		}
	}
}

// TestOfCommandParsesOne finds each kind by its program, and reads no other kind's file completely.
func TestOfCommandParsesOne(t *testing.T) {
	for _, name := range Names() {
		mu.Lock()
		clear(known)
		mu.Unlock()
		k := OfCommand([]string{"/usr/local/bin/" + name, "-x"})
		if k == nil || k.Name != name || !k.Runs([]string{name}) {
			t.Errorf("%s: found %+v", name, k)
		}
		if len(known) != 1 {
			t.Errorf("%s: parsed %d kinds", name, len(known))
		}
	}
	if len(programs()) != len(Names()) {
		t.Errorf("%d programs of %d kinds", len(programs()), len(Names()))
	}
	for name, kind := range programs() {
		if got := Get(kind).Program(); got != name {
			t.Errorf("kind %s: program %s, found by %s", kind, got, name)
		}
	}
}
