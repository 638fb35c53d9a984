package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestPresets allows and denies a preset, and a host of it, for a running bottle and in
// its manifest. The world has no such hosts: the proxy looks up the name of an allowed
// one, in vain, and refuses others without that.
func TestPresets(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-presets")
	const (
		notAllowed = "domain not in allowlist"
		denied     = "denied by the entry"
		looked     = "DNS lookup of"
	)
	check := func(host, want string) {
		t.Helper()
		if r := u.exec(l.name, "curl", "-sS", "-m", "20", "https://"+host+"/"); r.code == 0 {
			t.Errorf("%s was reached: %s", host, r.stdout)
		}
		lines := strings.Split(strings.TrimSpace(u.bottle("egress", l.name).stdout), "\n")
		if last := lines[len(lines)-1]; !strings.Contains(last, " "+host+":443 ") || !strings.Contains(last, want) {
			t.Errorf("%s: want %q in %q", host, want, last)
		}
	}
	change := func(args ...string) {
		t.Helper()
		if r := u.bottle(args...); r.code != 0 {
			t.Fatalf("%q: exit %d\n%s", args, r.code, r.stderr)
		}
	}
	saved := func(old, new string) {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(u.dir, "bottle.yaml"))
		if want := strings.Replace(manifest, old, new, 1); err != nil || string(text) != want {
			t.Errorf("the manifest, %v:\n%s", err, text)
		}
	}
	check("deb.debian.org", notAllowed) // the control
	change("allow", "presets", "@debian", "--save")
	saved(`"*.wild.test"]`, `"*.wild.test", "@debian"]`)
	check("deb.debian.org", looked)
	check("security.debian.org", looked)
	check("archive.ubuntu.com", notAllowed)

	change("deny", "presets", "security.debian.org")
	check("deb.debian.org", looked)
	check("security.debian.org", notAllowed)
	change("allow", "presets", "*.deb.debian.org")
	change("deny", "presets", "@debian", "--save")
	saved(`"*.wild.test"]`, `"*.wild.test"]`)
	check("deb.debian.org", denied)
	check("www.deb.debian.org", looked)

	if r := u.bottle("allow", "presets", "@debain"); r.code != 125 || !strings.Contains(r.stderr, `unknown preset "@debain"`) || !strings.Contains(r.stderr, `did you mean "@debian"?`) {
		t.Errorf("an unknown preset: exit %d\n%s", r.code, r.stderr)
	}
}
