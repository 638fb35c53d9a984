package egress

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// The table is in the form that its rules require: sorted, exact names on the usual
// ports, and a phrase wherever data can be sent out.
func TestPresets(t *testing.T) {
	var names []string
	for _, p := range Presets() {
		names = append(names, p.Name)
		if !IsPreset(p.Name) || p.Name != strings.ToLower(p.Name) || p.Use == "" || strings.HasSuffix(p.Use, ".") {
			t.Errorf("%+v", p)
		}
		var hosts []string
		for _, h := range p.Hosts {
			hosts = append(hosts, h.Host)
			r, err := ParseRule(h.Host)
			if err != nil || r != (Rule{Host: h.Host}) || strings.HasPrefix(h.Host, "*") || r.address().IsValid() || !strings.Contains(h.Host, ".") {
				t.Errorf("%s: %+v is not an exact name without a port: %+v, %v", p.Name, h, r, err)
			}
			if strings.HasSuffix(h.Sends, ".") {
				t.Errorf("%s: %q is not a phrase", p.Name, h.Sends)
			}
		}
		if sorted := sortedUnique(slices.Clone(hosts)); len(hosts) == 0 || !slices.Equal(hosts, sorted) {
			t.Errorf("%s: the hosts are not sorted and unique: %q", p.Name, hosts)
		}
	}
	if !slices.Equal(names, sortedUnique(slices.Clone(names))) {
		t.Errorf("the names are not sorted and unique: %q", names)
	}
	for _, name := range []string{"@alpine", "@debian", "@github", "@github-read", "@ubuntu"} {
		if !slices.Contains(names, name) {
			t.Errorf("no preset %s", name)
		}
	}
	// A host has the same phrase in every preset.
	sends := map[string]string{}
	for _, p := range Presets() {
		for _, h := range p.Hosts {
			if before, ok := sends[h.Host]; ok && before != h.Sends {
				t.Errorf("%s: %q and %q", h.Host, before, h.Sends)
			}
			sends[h.Host] = h.Sends
		}
	}
	// The list is a copy.
	Presets()[0].Hosts[0].Host = "changed"
	if Presets()[0].Hosts[0].Host == "changed" {
		t.Error("a caller can change the presets")
	}
}

func TestParseListEntry(t *testing.T) {
	e, err := ParseListEntry("@debian")
	if err != nil || e.String() != "@debian" || len(e.Rules) != 2 || e.Rules[0] != (Rule{Host: "deb.debian.org"}) {
		t.Errorf("@debian: %+v, %v", e, err)
	}
	if each := e.Each(); len(each) != 2 || each[1].String() != "security.debian.org" || each[1].Preset != "" {
		t.Errorf("each of @debian: %+v", each)
	}
	e, err = ParseListEntry("A.Example:8443")
	if err != nil || e.String() != "a.example:8443" || len(e.Each()) != 1 {
		t.Errorf("a destination: %+v, %v", e, err)
	}
	for entry, want := range map[string][2]string{
		"@debain":      {`unknown preset "@debain"`, `did you mean "@debian"? known presets: @alpine, @debian, `},
		"@DEBIAN":      {`unknown preset "@DEBIAN"`, `did you mean "@debian"?`},
		"@githubread":  {`unknown preset "@githubread"`, `did you mean "@github-read"?`},
		"@frobnicate":  {`unknown preset "@frobnicate"`, `known presets: @alpine, `},
		"@":            {`invalid egress entry "@": expected only a host: found '@'`, ""},
		"@debian:443":  {`invalid egress entry "@debian:443": expected only a host: found '@'`, ""},
		"@debian.test": {`invalid egress entry "@debian.test": expected only a host: found '@'`, ""},
		"me@debian":    {`invalid egress entry "me@debian": expected only a host: found '@'`, ""},
	} {
		_, err := ParseListEntry(entry)
		if err == nil || err.Error() != want[0] {
			t.Errorf("%s: %v, want %s", entry, err, want[0])
		}
		var unknown *UnknownPresetError
		if errors.As(err, &unknown) != (want[1] != "") || unknown != nil && !strings.HasPrefix(unknown.Hint(), want[1]) {
			t.Errorf("%s: hint %v, want %s", entry, unknown, want[1])
		}
	}
	// Lists without presets do not accept them.
	for _, e := range []Entries{{SSH: []string{"@debian"}}, {AllowPrivate: []string{"@debian"}}} {
		if _, err := e.Policy(); err == nil {
			t.Errorf("%+v is accepted", e)
		}
	}
}

func TestExpand(t *testing.T) {
	got := Expand([]string{"z.example", "@debian", "deb.debian.org", "*.a.example:8443", "@debian", "@unknown"})
	want := []string{"*.a.example:8443", "@unknown", "deb.debian.org", "security.debian.org", "z.example"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := Expand(nil); got == nil || len(got) != 0 {
		t.Errorf("nothing: %#v", got)
	}
	// The expanded lists are the same policy.
	e := Entries{Allow: []string{"@debian", "@ubuntu", "x.example:1"}, Deny: []string{"archive.ubuntu.com", "@alpine"}}
	raw, err := e.Policy()
	if err != nil {
		t.Fatal(err)
	}
	expanded, err := Entries{Allow: Expand(e.Allow), Deny: Expand(e.Deny)}.Policy()
	if err != nil || !slices.Equal(raw.Hosts(), expanded.Hosts()) || len(raw.Deny) != len(expanded.Deny) {
		t.Errorf("raw %+v, expanded %+v, %v", raw, expanded, err)
	}
}

// Deny wins over allow, whichever of the two names a preset.
func TestPresetPrecedence(t *testing.T) {
	for _, tc := range []struct {
		entries          Entries
		allowed, refused string // hosts
	}{
		{Entries{Allow: []string{"@debian"}}, "deb.debian.org security.debian.org", "debian.org a.deb.debian.org archive.ubuntu.com"},
		{Entries{Allow: []string{"@debian"}, Deny: []string{"security.debian.org"}}, "deb.debian.org", "security.debian.org"},
		{Entries{Allow: []string{"@debian"}, Deny: []string{"@debian"}}, "", "deb.debian.org security.debian.org"},
		{Entries{Allow: []string{"*.deb.debian.org", "other.example"}, Deny: []string{"@debian"}}, "www.deb.debian.org other.example", "deb.debian.org"},
		{Entries{Allow: []string{"@github"}, Deny: []string{"@github-read"}}, "api.github.com uploads.github.com", "github.com codeload.github.com"},
		{Entries{Allow: []string{"@debian"}, Deny: []string{"*.deb.debian.org"}}, "security.debian.org", "deb.debian.org"},
		{Entries{Deny: []string{"@debian"}}, "", "deb.debian.org"},
	} {
		p, err := tc.entries.Policy()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []struct {
			hosts   string
			allowed bool
		}{{tc.allowed, true}, {tc.refused, false}} {
			for _, host := range strings.Fields(want.hosts) {
				for _, port := range []int{80, 443} {
					if v := p.Check(host, port); v.Allowed != want.allowed {
						t.Errorf("%+v: %s:%d: %+v", tc.entries, host, port, v)
					}
				}
				if v := p.Check(host, 22); v.Allowed {
					t.Errorf("%+v: %s:22 is allowed", tc.entries, host)
				}
			}
		}
	}
}

// A manifest keeps the names of presets when it is changed.
func TestChangeWithPresets(t *testing.T) {
	for _, tc := range []struct {
		entries Entries
		change  func(Entries, ListEntry) (Entries, Change, error)
		entry   string
		want    string // as changeText
		err     string
	}{
		{Entries{}, Entries.Allowing, "@debian", "+@debian", ""},
		{Entries{Allow: []string{"@debian"}}, Entries.Allowing, "@debian", "", ""},
		{Entries{Allow: []string{"@debian"}}, Entries.Allowing, "deb.debian.org", "", ""},
		{Entries{Allow: []string{"deb.debian.org"}}, Entries.Allowing, "@debian", "+@debian", ""},
		{Entries{Allow: []string{"@github"}}, Entries.Allowing, "@github-read", "", ""},
		{Entries{Allow: []string{"@debian"}, Deny: []string{"@debian"}}, Entries.Allowing, "@debian", "?@debian", ""},
		{Entries{Allow: []string{"@debian"}, Deny: []string{"deb.debian.org"}}, Entries.Allowing, "@debian", "?deb.debian.org", ""},
		{Entries{Deny: []string{"@debian"}}, Entries.Allowing, "deb.debian.org", "", "deb.debian.org is denied by the entry @debian"},
		{Entries{Deny: []string{"@github"}}, Entries.Allowing, "@github-read", "", "codeload.github.com is denied by the entry @github"},
		{Entries{Deny: []string{"*.deb.debian.org"}}, Entries.Allowing, "@debian", "", "deb.debian.org is denied by the entry *.deb.debian.org"},

		{Entries{Allow: []string{"@debian"}}, Entries.Denying, "@debian", "-@debian", ""},
		{Entries{Allow: []string{"@debian", "a.example"}}, Entries.Denying, "deb.debian.org", "!deb.debian.org", ""},
		{Entries{Allow: []string{"deb.debian.org"}}, Entries.Denying, "@debian", "-deb.debian.org", ""},
		{Entries{Allow: []string{"@debian", "*.deb.debian.org"}}, Entries.Denying, "@debian", "-@debian !@debian", ""},
		{Entries{Allow: []string{"@github"}}, Entries.Denying, "@github-read", "!@github-read", ""},
		{Entries{Allow: []string{"a.example"}}, Entries.Denying, "@debian", "", ""},
		{Entries{Allow: []string{"@debian"}, Deny: []string{"@debian"}}, Entries.Denying, "deb.debian.org", "", ""},
	} {
		entry, err := ParseListEntry(tc.entry)
		if err != nil {
			t.Fatal(err)
		}
		got, change, err := tc.change(tc.entries, entry)
		if tc.err != "" {
			if err == nil || err.Error() != tc.err {
				t.Errorf("%+v %s: %v, want %s", tc.entries, tc.entry, err, tc.err)
			}
			continue
		}
		if text := changeText(change); err != nil || text != tc.want {
			t.Errorf("%+v %s: %q, %v, want %q", tc.entries, tc.entry, text, err, tc.want)
			continue
		}
		_, again, err := tc.change(got, entry)
		if err != nil || !again.Empty() {
			t.Errorf("%+v %s: a second time: %q, %v", tc.entries, tc.entry, changeText(again), err)
		}
	}
}

func TestPresetProblems(t *testing.T) {
	for _, tc := range []struct {
		entries Entries
		want    string
	}{
		{Entries{Allow: []string{"@debian"}}, ""},
		// Exceptions from a preset are its use, and what is left of it works.
		{Entries{Allow: []string{"@debian"}, Deny: []string{"security.debian.org"}}, ""},
		{Entries{Allow: []string{"@debian"}, Deny: []string{"@debian"}}, `allow entry "@debian": always refused: denied by the entry @debian`},
		{Entries{Allow: []string{"@debian"}, Deny: []string{"*.deb.debian.org", "*.security.debian.org"}}, `allow entry "@debian": always refused: denied by the entry *.deb.debian.org`},
		{Entries{Allow: []string{"deb.debian.org", "x.example"}, Deny: []string{"@debian"}}, `allow entry "deb.debian.org": always refused: denied by the entry @debian`},
		{Entries{Allow: []string{"@github"}, Deny: []string{"@github-read"}}, ""},
		{Entries{Allow: []string{"a.example"}, Deny: []string{"@debian"}}, `deny entry "@debian": has no effect: no entry allows one of its hosts`},
	} {
		var got []string
		for _, p := range tc.entries.Problems() {
			got = append(got, p.Error())
		}
		if text := strings.Join(got, "\n"); text != tc.want {
			t.Errorf("%+v:\n%s\nwant:\n%s", tc.entries, text, tc.want)
		}
	}
}

// The proxy refuses hosts outside of a preset, and those that the deny list names. It
// tries to connect to the others, where nothing listens.
func TestProxyPresets(t *testing.T) {
	dns := fakeDNS{}
	for _, host := range []string{"deb.debian.org.", "security.debian.org.", "www.deb.debian.org."} {
		dns[host] = []string{"127.0.0.1"}
	}
	p := startProxy(t, Config{Resolver: dns, Entries: Entries{Allow: []string{"@debian"}, Deny: []string{"security.debian.org"}}})
	for target, want := range map[string]struct {
		status int
		reason string
	}{
		"deb.debian.org:443":      {http.StatusBadGateway, ""},
		"deb.debian.org:8443":     {http.StatusForbidden, "port not in allowlist: deb.debian.org:8443"},
		"www.deb.debian.org:443":  {http.StatusForbidden, "domain not in allowlist: www.deb.debian.org"},
		"security.debian.org:443": {http.StatusForbidden, "denied by the entry security.debian.org: security.debian.org:443"},
	} {
		res, body, _ := p.raw(t, http.MethodConnect, "CONNECT "+target+" HTTP/1.1\r\n\r\n")
		if res.StatusCode != want.status || !strings.Contains(body, want.reason) {
			t.Errorf("%s: %s %q, want %d %q", target, res.Status, body, want.status, want.reason)
		}
	}
}
