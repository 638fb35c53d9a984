package policy

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/rootonly"
)

// mistakes are invalid policies, with the error and its hint. The schema refuses those
// that it can.
var mistakes = []struct {
	text, want, hint string
	valid            bool // to the schema
}{
	{"", "/p: empty file", "version: 1", true},
	{"version: 2\n", "/p:1:10: invalid version: expected a whole number from 1 to 1", "", false},
	{"runtimes: [runsc]\n", "/p:1:1: missing version", "start the file", false},
	{"version: 1\nruntime: [runsc]\n", `/p:2:1: unknown key "runtime" in the policy`, `did you mean "runtimes"?`, false},
	{"version: 1\nruntimes: runsc\n", "/p:2:11: invalid runtimes: expected a list, got text", "", false},
	{"version: 1\nruntimes: [kata]\n", `/p:2:12: invalid runtimes entry: unknown value "kata"`, "known values: runc, runsc", false},
	{"version: 1\nimages: [\"a b\"]\n", `/p:2:10: invalid images entry: "a b": invalid reference format`, "", true},
	{"version: 1\nproxies: {images: [x/y]}\n", `/p:2:20: invalid images entry: missing digest of "x/y"`, "NAME@sha256:", false},
	{"version: 1\nproxies: {images: [x/y, 3]}\n", `invalid images entry: expected text, got a number`, "", false},
	{"version: 1\negress: {never: [\"a.test:80\"]}\n", `unexpected port in "a.test:80"`, "denied on all ports", true},
	{"version: 1\negress: {at_most: [\"https://a.test\"]}\n", "expected a host, not a URL", "", true},
	{"version: 1\negress: {at_most: [\"@nothing\"]}\n", `unknown preset "@nothing"`, "known presets", true},
	{"version: 1\negress: {private: [10.0.0.1/8]}\n", "bits set beyond its length", "", true},
	{"version: 1\nlimits: {memory: lots}\n", "invalid memory: expected a size", "", true},
	{"version: 1\nlimits: {cpus: 0}\n", "invalid cpus", "", false},
	{"version: 1\nlimits: {pids: 1.5}\n", "invalid pids", "", false},
	{"version: 1\nbottles_per_user: 0\n", "invalid bottles_per_user: expected a whole number from 1", "", false},
	{"version: 1\nbuilds: {allowed: 1}\n", "invalid allowed: expected true or false, got a number", "", false},
	{"version: 1\nlearn: \"no\"\n", "invalid learn: expected true or false, got text", "", false},
	{"version: 1\nsecrets: [all]\n", `unknown value "all"`, "known values: build,", false},
	{"version: 1\nlearn: false\nlearn: true\n", "duplicate key", "", true},
	{"version: 1\nimages: &a [x]\nruntimes: *a\n", "invalid runtimes: expected a list, got an alias", "", false},
	{"version: 1\n---\nversion: 1\n", "invalid YAML", "", true},
	{"version: [1\n", "/p:2:1: invalid YAML", "", true},
	{"[1]\n", "invalid the policy: expected a mapping", "", false},
	{"version: 1\n\xff\n", "/p: invalid UTF-8", "", true},
}

func TestMistakes(t *testing.T) {
	schema := compileSchema(t)
	for _, m := range mistakes {
		_, err := Parse("/p", []byte(m.text))
		if err == nil || !strings.Contains(err.Error(), m.want) {
			t.Errorf("%q: got %v, want %s", m.text, err, m.want)
			continue
		}
		for _, one := range hint.Split(err) {
			if strings.Contains(one.Error(), m.want) && !strings.Contains(hint.Of(one), m.hint) {
				t.Errorf("%q: hint %q, want %q", m.text, hint.Of(one), m.hint)
			}
		}
		if !m.valid && schema.Validate(value(t, m.text)) == nil {
			t.Errorf("%q: the schema accepts it", m.text)
		}
	}
}

// FuzzParse: no text makes the parsers panic, and a text that is accepted is bounded: a
// key that is present is not read as if it were missing.
func FuzzParse(f *testing.F) {
	for _, m := range mistakes {
		f.Add([]byte(m.text))
	}
	for key, c := range keys {
		f.Add([]byte(text(key, c.value)))
	}
	f.Add([]byte("version: 1\naddress: /a\nusers_may_set: [namespace]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("/p", data)
		if err == nil && (p.Path != "/p" || len(p.SHA256) != 64) {
			t.Errorf("%+v", p)
		}
		if err == nil {
			// A second reading gives the same policy.
			again, err := Parse("/p", data)
			if err != nil || !slices.Equal(p.Images, again.Images) || (p.Images == nil) != (again.Images == nil) {
				t.Errorf("%+v, then %+v, %v", p, again, err)
			}
			r := newRules(p, "/", notExempt)
			for _, c := range keys {
				for _, one := range c.requests {
					_ = one.ask(r) // does not panic
				}
			}
		}
		_, _ = ParseConfig("/c", data)
	})
}

// TestFile: a policy that others than root can have written is refused, with the fix.
func TestFile(t *testing.T) {
	uid := uint32(os.Getuid())
	rootonly.TrustedOwner = uid
	t.Cleanup(func() { rootonly.TrustedOwner = 0 })
	root := filepath.Join(t.TempDir(), "etc")
	dir := filepath.Join(root, "bottle")
	file := filepath.Join(dir, File)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if p, err := Load(dir); err != nil || p.Path != "" {
		t.Errorf("without a file: %+v, %v", p, err)
	}
	reset := func() {
		_ = os.Remove(file)
		if err := errors.Join(os.WriteFile(file, []byte("version: 1\n"), 0o600), os.Chmod(file, 0o644), os.Chmod(dir, 0o755), os.Chmod(root, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	reset()
	if p, err := Load(dir); err != nil || p.Path != file {
		t.Errorf("control: %+v, %v", p, err)
	}
	for name, c := range map[string]struct {
		change     func() error
		want, hint string
	}{
		"writable by all":         {func() error { return os.Chmod(file, 0o666) }, "is writable by others than root (mode 0666)", "chmod go-w " + file},
		"directory":               {func() error { return os.Chmod(dir, 0o777) }, dir + " is writable by others than root (mode 0777)", "chmod go-w " + dir},
		"parent":                  {func() error { return os.Chmod(root, 0o777) }, root + " is writable by others than root", "chmod go-w " + root},
		"symbolic link":           {func() error { return errors.Join(os.Remove(file), os.Symlink("/dev/null", file)) }, "is a symbolic link", "replace it"},
		"not a regular file":      {func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o755)) }, "is not a regular file", "replace it"},
		"another owner":           {func() error { rootonly.TrustedOwner = uid + 1; return nil }, "belongs to user", "chown root:root"},
		"too large":               {func() error { return os.WriteFile(file, make([]byte, rootonly.MaxFile+1), 0o600) }, "is larger than", ""},
		"with the sticky bit set": {func() error { return os.Chmod(root, 0o777|fs.ModeSticky) }, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			reset()
			defer func() { rootonly.TrustedOwner = uid }()
			if err := c.change(); err != nil {
				t.Fatal(err)
			}
			if name == "another owner" && uid == 0 {
				// root's own files are trusted always
				if err := os.Chown(file, 41001, 41001); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Load(dir)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(hint.Of(err), c.hint) {
				t.Errorf("got %v, hint %q", err, hint.Of(err))
			}
		})
	}
}

// TestChoice: a user of sudo gets the host's settings, unless root lets users choose.
func TestChoice(t *testing.T) {
	c, err := ParseConfig("/etc/bottle/config.yaml", []byte("version: 1\naddress: /run/k3s.sock\nusers_may_set: [namespace]\n"))
	if err != nil {
		t.Fatal(err)
	}
	c.dir = Dir
	ada := caller.Caller{UID: 1000}
	rules := newRules(&Policy{}, Dir, notExempt)
	if os.Geteuid() == 0 {
		err = c.Choice(ada, rules, Address, "--address", "/tmp/x", c.Values[Address])
		if err == nil || err.Error() != "--address /tmp/x is refused: only root chooses the address" ||
			hint.Of(err) != "omit it, or ask root to set address, or to list it in users_may_set, in /etc/bottle/config.yaml" {
			t.Errorf("%v, hint %q", err, hint.Of(err))
		}
	}
	for name, err := range map[string]error{
		"the host's own": c.Choice(ada, rules, Address, "--address", "/run/k3s.sock", c.Values[Address]),
		"may be set":     c.Choice(ada, rules, Namespace, "--namespace", "x", "bottle"),
		"root":           c.Choice(caller.Caller{}, nil, Address, "--address", "/tmp/x", "/y"),
		"may be root":    c.Choice(ada, newRules(&Policy{}, Dir, func() bool { return true }), Address, "--address", "/tmp/x", "/y"),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for text, want := range map[string]string{
		"version: 1\nrun_dir: x\n":           "invalid run_dir: not absolute",
		"version: 1\nusers_may_set: [all]\n": `unknown value "all"`,
		"version: 1\ncontainerd: /x\n":       `unknown key "containerd" in the system configuration`,
		"version: 1\nnamespace: [a]\n":       "invalid namespace: expected text",
		"address: /run/x\n":                  "missing version",

		"version: 1\naudit: journald\n":                          "invalid audit: expected a mapping",
		"version: 1\naudit: {}\n":                                "missing to in audit",
		"version: 1\naudit: {to: journal}\n":                     `invalid to: "journal" is neither journald, syslog nor an absolute path`,
		"version: 1\naudit: {to: audit.log}\n":                   `"audit.log" is neither`,
		"version: 1\naudit: {on_failure: stop}\n":                "missing to in audit",
		"version: 1\naudit: {to: syslog, on_failure: ignore}\n":  `invalid on_failure: unknown value "ignore"`,
		"version: 1\naudit: {to: syslog, file: /x}\n":            `unknown key "file" in audit`,
		"version: 1\naudit: {to: syslog}\naudit: {to: journald}": "duplicate key",
		"version: 1\naddress: /x\naddress: /y":                   "duplicate key",
	} {
		if _, err := ParseConfig("/c", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestAuditConfig: the system configuration says where events are written.
func TestAuditConfig(t *testing.T) {
	for text, want := range map[string]audit.Config{
		"":                        {},
		"audit: {to: journald}\n": {To: audit.Journald},
		"audit: {to: syslog, on_failure: stop}\n":                  {To: audit.Syslog, OnFailure: audit.Stop},
		"audit: {to: /var/log/bottle.log, on_failure: continue}\n": {To: "/var/log/bottle.log", OnFailure: audit.Continue},
	} {
		if c, err := ParseConfig("/c", []byte("version: 1\n"+text)); err != nil || c.Audit != want {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
}

func notExempt() bool { return false }
