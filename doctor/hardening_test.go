package doctor

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/confine"
)

// host is a hardened host in a directory.
type host struct {
	dir string
	cfg bottle.Config
}

func (h host) path(name string) string { return filepath.Join(h.dir, name) }

func (h host) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(h.path(name)), 0o755), os.WriteFile(h.path(name), []byte(text), 0o600), os.Chmod(h.path(name), mode)); err != nil {
		t.Fatal(err)
	}
}

func newHost(t *testing.T) host {
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root: it changes the owners of files")
	}
	h := host{dir: t.TempDir()}
	if err := os.Chmod(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h.cfg = bottle.Config{
		Address: h.path("containerd.sock"), RunDir: h.path("run"), StateDir: h.path("state"), CNIPath: h.path("cni"),
		CNIConf: h.path("etc/cni"), HostsDir: h.path("etc/hosts.d"),
	}
	for _, name := range []string{"bin/bottle", "bin/containerd", "bin/runsc", "bin/gvisor-bin/gvisor_sentry", "bin/runc", "bin/containerd-shim-runsc-v1", "bin/containerd-shim-runc-v2", "bin/nsenter", "cni/bridge", "cni/loopback"} {
		h.write(t, name, "#!/bin/sh\n", 0o755)
	}
	t.Setenv("PATH", h.path("bin"))
	h.write(t, "etc/policy.yaml", "version: 1\n", 0o644)
	h.write(t, "etc/config.yaml", "version: 1\naudit: {to: "+h.path("log/bottle.log")+", on_failure: stop}\n", 0o644)
	h.write(t, "log/bottle.log", "", 0o600)
	h.write(t, "sudoers", "Defaults env_reset # , setenv\nDefaults !setenv\n@includedir sudoers.d\n", 0o440)
	h.write(t, "sudoers.d/bottle", "%agents ALL=(root) \\\n NOPASSWD: "+h.path("bin/bottle")+"\n", 0o440)
	h.write(t, "sudoers.d/list", "Cmnd_Alias B = /bin/ls, \\\n "+h.path("bin/bottle")+"\n#41001 ALL=(root) NOPASSWD: B\n%sudo ALL=(ALL:ALL) SETENV: ALL\n", 0o440)
	h.write(t, "sudoers.d/old.bak", "Defaults setenv\n", 0o440)
	for _, name := range []string{"run", "state"} {
		if err := os.Mkdir(h.path(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", h.cfg.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := os.Chmod(h.cfg.Address, 0o660); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h host) check() []Finding {
	return Hardening(h.cfg, h.path("etc"), h.path("bin/bottle"), h.path("sudoers"))
}

// TestHardened is the control: nothing is wrong with a hardened host.
func TestHardened(t *testing.T) {
	found := newHost(t).check()
	if len(found) != 12 {
		t.Errorf("%d findings: %+v", len(found), found)
	}
	doc, err := os.ReadFile("../docs/hardening.md")
	if err != nil {
		t.Fatal(err)
	}
	_, checklist, _ := strings.Cut(string(doc), "\n## Checklist\n")
	for _, f := range found {
		if !strings.Contains(checklist, "`"+f.Check+"`") {
			t.Errorf("docs/hardening.md does not list %s", f.Check)
		}
		if f.Check == "Landlock" && confine.ABI() == 0 { // not this host's to change
			continue
		}
		if f.Level != LevelOK || f.Fix != "" {
			t.Errorf("%+v", f)
		}
	}
}

// TestHardening: each weakness is one finding, with a fix.
func TestHardening(t *testing.T) {
	const somebody = 41001
	chmod := func(name string, mode os.FileMode) func(*testing.T, host) error {
		return func(_ *testing.T, h host) error { return os.Chmod(h.path(name), mode) }
	}
	chown := func(name string) func(*testing.T, host) error {
		return func(_ *testing.T, h host) error { return os.Lchown(h.path(name), somebody, somebody) }
	}
	write := func(name, text string) func(*testing.T, host) error {
		return func(t *testing.T, h host) error {
			h.write(t, name, strings.ReplaceAll(text, "BIN", h.path("bin")), 0o440)
			return nil
		}
	}
	withoutList := func(t *testing.T, h host) { h.write(t, "sudoers.d/list", "", 0o440) }
	for name, c := range map[string]struct {
		weaken                    func(*testing.T, host) error
		check, level, detail, fix string
	}{
		"SETENV":                  {write("sudoers.d/bottle", "%agents ALL=(root) NOPASSWD:SETENV: BIN/bottle\n"), "sudoers", LevelFail, "SETENV", "remove SETENV"},
		"SETENV for a list":       {write("sudoers.d/bottle", "Cmnd_Alias A = /bin/true : B = /bin/ls, BIN/bottle\n%agents ALL=(root) NOPASSWD:SETENV: B\n"), "sudoers", LevelFail, "SETENV", "remove SETENV"},
		"a list that is not used": {write("sudoers.d/bottle", "Cmnd_Alias B = BIN/bottle\n"), "sudoers", LevelWarn, "no line lets anybody run", "NOPASSWD"},
		"setenv":                  {write("sudoers.d/a", "Defaults:%agents setenv\n"), "sudoers", LevelFail, "setenv is on", "remove setenv"},
		"no env_reset":            {write("sudoers.d/a", "Defaults !env_reset\n"), "sudoers", LevelFail, "env_reset is off", "remove !env_reset"},
		"env_keep":                {write("sudoers.d/a", "Defaults env_keep += \"LANG SUDO_UID\"\n"), "sudoers", LevelFail, "env_keep", "remove them"},
		"a wildcard":              {write("sudoers.d/bottle", "%agents ALL=(root) NOPASSWD: BIN/b*\n"), "sudoers", LevelFail, "also matches other programs", "name "},
		"a directory":             {write("sudoers.d/bottle", "%agents ALL=(root) NOPASSWD: BIN/\n"), "sudoers", LevelFail, "also matches other programs", "name "},
		"an included file":        {write("sudoers", "#include sudoers.d/old.bak\n"), "sudoers", LevelFail, "old.bak: setenv is on", "remove setenv"},
		"no line":                 {write("sudoers.d/bottle", "# BIN/bottle\n"), "sudoers", LevelWarn, "no line lets anybody run", "NOPASSWD"},
		"no sudoers":              {func(_ *testing.T, h host) error { return os.Remove(h.path("sudoers")) }, "sudoers", LevelFail, "no such file", "visudo"},
		"no policy":               {func(_ *testing.T, h host) error { return os.Remove(h.path("etc/policy.yaml")) }, "policy", LevelWarn, "no policy", "write "},
		"a writable policy":       {chmod("etc/policy.yaml", 0o666), "policy", LevelFail, "writable by others", "chmod go-w"},
		"an invalid policy":       {write("etc/policy.yaml", "version: 2\n"), "policy", LevelFail, "invalid version", "bottle policy check"},
		"users_may_set":           {write("etc/config.yaml", "version: 1\nusers_may_set: [address]\naudit: {to: journald}\n"), "system configuration", LevelWarn, "may set address", "remove users_may_set"},
		"no audit":                {write("etc/config.yaml", "version: 1\n"), "audit", LevelWarn, "nothing is recorded", "audit: {to: journald}"},
		"a readable run":          {chmod("run", 0o755), "run directory", LevelFail, "open to others than root (mode 0755)", "chmod 700"},
		"another's run":           {chown("run"), "run directory", LevelFail, "belongs to user 41001", "chown root:root"},
		"a readable state":        {chmod("state", 0o710), "state directory", LevelFail, "open to others", "chmod 700"},
		"an open log":             {chmod("log/bottle.log", 0o602), "audit", LevelFail, "writable by others", "chmod go-w"},
		"an open socket":          {chmod("containerd.sock", 0o666), "containerd's socket", LevelFail, "everybody may talk", "chmod 660"},
		"a group's socket":        {func(_ *testing.T, h host) error { return os.Chown(h.cfg.Address, 0, somebody) }, "containerd's socket", LevelFail, "group 41001 may talk", "gid = 0"},
		"another's socket":        {func(_ *testing.T, h host) error { return os.Chown(h.cfg.Address, somebody, 0) }, "containerd's socket", LevelFail, "belongs to user 41001", "uid = 0"},
		"no socket":               {func(_ *testing.T, h host) error { return os.Remove(h.cfg.Address) }, "containerd's socket", LevelFail, "no such file", "systemctl"},
		"another's bottle":        {chown("bin/bottle"), "programs", LevelFail, "belongs to user 41001", "chown root:root"},
		"a writable runsc":        {chmod("bin/runsc", 0o757), "programs", LevelFail, "runsc is writable by others", "chmod go-w"},
		"another's sentry":        {chown("bin/gvisor-bin/gvisor_sentry"), "programs", LevelFail, "gvisor_sentry belongs to user 41001", "chown root:root"},
		"writable sentries":       {chmod("bin/gvisor-bin", 0o777), "programs", LevelFail, "gvisor-bin is writable by others", "chmod go-w"},
		"another's nsenter":       {chown("bin/nsenter"), "programs", LevelFail, "nsenter belongs to user 41001", "chown root:root"},
		"another's shim":          {chown("bin/containerd-shim-runsc-v1"), "programs", LevelFail, "containerd-shim-runsc-v1 belongs to user 41001", "chown root:root"},
		"a missing shim":          {func(_ *testing.T, h host) error { return os.Remove(h.path("bin/containerd-shim-runsc-v1")) }, "programs", LevelWarn, "not checked: containerd-shim-runsc-v1", "check their owners"},
		"another's plugin":        {chown("cni/loopback"), "CNI plugins", LevelFail, "loopback belongs to user 41001", "chown root:root"},
		"writable plugins":        {chmod("cni", 0o777), "CNI plugins", LevelFail, "cni is writable by others", "chmod go-w"},
		"another's network": {func(t *testing.T, h host) error {
			return errors.Join(os.Mkdir(h.path("etc/cni"), 0o755), os.Chown(h.path("etc/cni"), somebody, 0))
		}, "network configuration", LevelFail, "belongs to user 41001", "chown root:root"},
		"another's registry": {func(t *testing.T, h host) error {
			return errors.Join(os.Mkdir(h.path("etc/hosts.d"), 0o755), os.Chown(h.path("etc/hosts.d"), somebody, 0))
		}, "registries", LevelFail, "belongs to user 41001", "chown root:root"},
		"a link to another's program": {func(t *testing.T, h host) error {
			h.write(t, "other/runc", "", 0o755)
			return errors.Join(os.Chown(h.path("other"), somebody, 0), os.Remove(h.path("bin/runc")), os.Symlink(h.path("other/runc"), h.path("bin/runc")))
		}, "programs", LevelFail, "other belongs to user 41001", "chown root:root"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			withoutList(t, h)
			if err := c.weaken(t, h); err != nil {
				t.Fatal(err)
			}
			n := 0
			for _, f := range h.check() {
				if f.Level == LevelOK {
					continue
				}
				if n++; f.Check != c.check || f.Level != c.level || !strings.Contains(f.Detail, c.detail) || !strings.Contains(f.Fix, c.fix) {
					t.Errorf("got %+v", f)
				}
			}
			if n != 1 {
				t.Errorf("%d findings", n)
			}
		})
	}
}
