package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/doctor"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// doctor runs the command and takes its findings by what they are about.
func (u user) doctor(t *testing.T, code int, args ...string) map[string]doctor.Finding {
	t.Helper()
	return findings(t, code, u.command(append([]string{"doctor", "--json"}, args...)...))
}

func findings(t *testing.T, code int, cmd *exec.Cmd) map[string]doctor.Finding {
	t.Helper()
	r := finish(t, cmd)
	var list []doctor.Finding
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil || r.code != code {
		t.Fatalf("exit %d, want %d; %v in %s%s", r.code, code, err, r.stdout, r.stderr)
	}
	found := map[string]doctor.Finding{}
	for _, f := range list {
		found[f.Check] = f
		if (f.Level == doctor.LevelOK) != (f.Fix == "") {
			t.Errorf("a fix for a check that is ok: %+v", f)
		}
	}
	return found
}

func TestDoctorGoodHost(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	found := u.doctor(t, 0)
	workspaces := "ext4 on loop devices"
	var st unix.Statfs_t
	if err := unix.Statfs("/var/lib", &st); err != nil {
		t.Fatal(err)
	}
	if st.Bavail*uint64(st.Bsize) < 10<<30 { //nolint:gosec // positive
		workspaces = "the workspace may grow to 10240 MiB" // a disk that is too small for one is a warning
	}
	for check, want := range map[string]string{
		"root": "as root", "containerd": "2.", "runsc": "runsc version", "runc": "runc version", "gVisor": "a sandbox runs on platform systrap",
		"CNI plugins": "found in", "egress subnet": "10.210.0.0/16 is free", "kernel": "nftables work", "cgroups": "version",
		"forwarding": "ip_forward", "firewall": "no rule of the host", "disk": "GiB free", "workspaces": workspaces, "tmpfs": "is on tmpfs", "resolver": "198.51.101.53",
	} {
		if f, ok := found[check]; !ok || f.Level == doctor.LevelFail || !strings.Contains(f.Detail, want) {
			t.Errorf("%s: %+v, want %q", check, f, want)
		}
	}
	if r := u.bottle("doctor"); r.code != 0 || !strings.Contains(r.stdout, "ok    containerd") || strings.Contains(r.stdout, "fail") {
		t.Errorf("exit %d:\n%s%s", r.code, r.stdout, r.stderr)
	}
	// The manifest's largest workspace counts.
	u.write("bottle.yaml", "version: 1\nbottles: {a: {limits: {workspace: 8TiB}}, b: {}}\nagents: {x: {bottle: b}}\n")
	if f := u.doctor(t, 0)["workspaces"]; f.Level != doctor.LevelWarn || !strings.Contains(f.Detail, "the workspace may grow to") {
		t.Errorf("a large workspace: %+v", f)
	}
}

// TestDoctorNotRoot checks that doctor reports what a user without root cannot check,
// instead of the results of missing permissions. On the same host root's checks are ok.
func TestDoctorNotRoot(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	found := findings(t, 1, u.asNobody("doctor", "--json"))
	if f := found["root"]; f.Level != doctor.LevelFail || f.Fix != "sudo bottle doctor" {
		t.Errorf("root: %+v", f)
	}
	for _, check := range []string{"kernel", "firewall"} {
		if f := found[check]; f.Level != doctor.LevelWarn || f.Detail != "not checked: needs root" || f.Fix != "sudo bottle doctor" {
			t.Errorf("%s: %+v", check, f)
		}
	}
}

// TestDoctorStockShim: where containerd cannot run bottle's program as the agents' shim,
// doctor warns and says what is lost. The control is a host where it can.
func TestDoctorStockShim(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	if f := u.doctor(t, 0)["runsc"]; f.Level != doctor.LevelOK {
		t.Errorf("control: %+v", f)
	}
	dir := t.TempDir()
	// Containerd does not see what this mount namespace contains.
	cmd := exec.Command("unshare", "--mount", "sh", "-ec", `mount -t tmpfs tmpfs "$1"; cp "$2" "$1"; "$1"/bottle doctor --json`, "sh", dir, labtest.Program(t))
	cmd.Dir = u.dir
	f := findings(t, 0, cmd)["runsc"]
	if f.Level != doctor.LevelWarn || !strings.Contains(f.Detail, "agents are lost when containerd stops") || !strings.Contains(f.Fix, "where containerd can run it") {
		t.Errorf("got %+v; want a warning", f)
	}
}

// TestDoctorBrokenHosts removes one requirement in each case.
func TestDoctorBrokenHosts(t *testing.T) {
	leakcheck.Check(t)
	onDisk := filepath.Join(t.TempDir(), "run")
	noRunsc := t.TempDir()
	for _, name := range []string{"runc", "containerd-shim-runc-v2"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(noRunsc, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name, check, detail, fix string
		env                      []string
	}{
		{"no containerd", "containerd", "cannot connect to containerd", "systemctl start containerd", []string{"CONTAINERD_ADDRESS=/run/nothing.sock"}},
		{"no runsc", "runsc", "not in PATH", "install gVisor", []string{"PATH=" + noRunsc}},
		{"no runc", "runc", "not in PATH", "apt install runc", []string{"PATH=/nowhere"}},
		{"no plugins", "CNI plugins", "bridge", "containernetworking-plugins", []string{"CNI_PATH=/nowhere"}},
		{"run directory on disk", "tmpfs", "not on tmpfs", "mount -t tmpfs", []string{"BOTTLE_RUN_DIR=" + onDisk}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newUser(t).with(tt.env...).doctor(t, 1)[tt.check]
			if f.Level != doctor.LevelFail || !strings.Contains(f.Detail, tt.detail) || !strings.Contains(f.Fix, tt.fix) {
				t.Errorf("got %+v; want a fail with %q and %q", f, tt.detail, tt.fix)
			}
		})
	}
	t.Run("subnet in use", func(t *testing.T) {
		hostCommand(t, "ip", "route", "add", "blackhole", "10.210.4.0/24")
		defer hostCommand(t, "ip", "route", "del", "blackhole", "10.210.4.0/24")
		if f := newUser(t).doctor(t, 1)["egress subnet"]; f.Level != doctor.LevelFail || !strings.Contains(f.Detail, "10.210.4.0/24") {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("firewall that refuses", func(t *testing.T) {
		hostCommand(t, "nft", "add table ip fw; add chain ip fw forward { type filter hook forward priority 0; }; add rule ip fw forward counter reject")
		defer hostCommand(t, "nft", "delete table ip fw")
		if f := newUser(t).doctor(t, 0)["firewall"]; f.Level != doctor.LevelWarn || !strings.Contains(f.Fix, "firewall-cmd") {
			t.Errorf("got %+v", f)
		}
	})
}

// TestDoctorMends applies the suggested fixes, where a test can, and checks again.
func TestDoctorMends(t *testing.T) {
	leakcheck.Check(t)
	mount := func(dir, size string) {
		t.Helper()
		hostCommand(t, "mount", "-t", "tmpfs", "-o", "size="+size, "tmpfs", dir)
		t.Cleanup(func() { hostCommand(t, "umount", dir) })
	}
	small, run := t.TempDir(), filepath.Join(t.TempDir(), "not", "there")
	mount(small, "8m")
	if err := os.MkdirAll(small+"/run/bottle", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, check, level, detail, env string }{
		{"run directory on disk", "tmpfs", doctor.LevelFail, "not on tmpfs", "BOTTLE_RUN_DIR=" + run},
		{"small run directory", "tmpfs", doctor.LevelWarn, "MiB free", "BOTTLE_RUN_DIR=" + small + "/run/bottle"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := newUser(t).with(tt.env)
			code := map[string]int{doctor.LevelFail: 1, doctor.LevelWarn: 0}[tt.level]
			f := u.doctor(t, code)[tt.check]
			if f.Level != tt.level || !strings.Contains(f.Detail, tt.detail) {
				t.Fatalf("got %+v", f)
			}
			hostCommand(t, "sh", "-c", f.Fix)
			if f := u.doctor(t, 0)[tt.check]; f.Level != doctor.LevelOK {
				t.Errorf("after %q: %+v", f.Fix, f)
			}
		})
	}
	hostCommand(t, "umount", run)
	t.Run("no room", func(t *testing.T) {
		f := newUser(t).with("BOTTLE_STATE_DIR="+small).doctor(t, 1)["disk"]
		if f.Level != doctor.LevelFail || !strings.Contains(f.Detail, "free at "+small) || !strings.Contains(f.Fix, "bottle cleanup") {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("no resolver", func(t *testing.T) {
		stub := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(stub, []byte("nameserver 127.0.0.53\nnameserver ::1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		hostCommand(t, "mount", "--bind", stub, "/etc/resolv.conf")
		defer hostCommand(t, "umount", "/etc/resolv.conf")
		if f := newUser(t).doctor(t, 0)["resolver"]; f.Level != doctor.LevelWarn || !strings.Contains(f.Fix, "/etc/resolv.conf") {
			t.Errorf("got %+v", f)
		}
	})
	t.Run("not root", func(t *testing.T) {
		found := findings(t, 1, newUser(t).asNobody("doctor", "--json"))
		if f := found["root"]; f.Level != doctor.LevelFail || f.Fix != "sudo bottle doctor" {
			t.Errorf("got %+v", f)
		}
	})
}

// TestDoctorRefresh checks a host whose firewall lost the rules of a running bottle.
func TestDoctorRefresh(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-doctor")
	if f := u.doctor(t, 0)["firewall"]; f.Level != doctor.LevelOK {
		t.Errorf("with a running bottle: %+v", f)
	}
	// `bottle run` would restore them.
	l.signal(syscall.SIGSTOP)
	defer func() { _ = l.cmd.Process.Signal(syscall.SIGCONT) }() // it may have ended
	hostCommand(t, "nft", "flush", "ruleset")
	if r := u.exec(l.name, "curl", "-sS", "-m", "2", "https://allowed.test/"); r.code == 0 {
		t.Error("egress works without the host's rules, so that this shows nothing")
	}
	if f := u.doctor(t, 1)["firewall"]; f.Level != doctor.LevelFail || f.Fix != "bottle doctor --refresh" {
		t.Errorf("after the flush: %+v", f)
	}
	if f := u.doctor(t, 0, "--refresh")["firewall"]; f.Level != doctor.LevelOK {
		t.Errorf("after --refresh: %+v", f)
	}
	if r := u.exec(l.name, "curl", "-sS", "-m", "5", "https://allowed.test/"); r.code != 0 {
		t.Errorf("egress does not work again: %+v", r)
	}
	l.signal(syscall.SIGCONT)
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}

// TestRulesComeBack reloads the host's firewall as its service does:
// it flushes all rules and adds a chain that drops by default.
func TestRulesComeBack(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-reload")
	hostCommand(t, "nft", "flush ruleset; add table ip fw; add chain ip fw forward { type filter hook forward priority 0; policy drop; }")
	defer hostCommand(t, "nft", "delete table ip fw")
	deadline := time.Now().Add(20 * time.Second)
	for u.exec(l.name, "curl", "-sS", "-m", "2", "-o", "/dev/null", "https://allowed.test/").code != 0 {
		if time.Now().After(deadline) {
			t.Fatal("egress does not come back after a reload of the firewall")
		}
	}
	if r := u.exec(l.name, "curl", "-sS", "-m", "2", "https://refused.test/"); r.code == 0 {
		t.Errorf("a refused host is reached: %+v", r)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}

func hostCommand(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// TestDoctorProxyImage checks a proxy image that is pinned by its digest, which doctor
// knows if the host has the image.
func TestDoctorProxyImage(t *testing.T) {
	leakcheck.Check(t)
	const ref = "registry.test/pipelock:2.3.0"
	digest := labtest.PutImage(t, ref, ocispec.ImageConfig{Entrypoint: []string{"/pipelock"}}, map[string][]byte{"pipelock": []byte("x")})
	wrong := "sha256:" + strings.Repeat("0", 64)
	for name, c := range map[string]struct{ proxy, level, detail, fix string }{
		"default":       {"", doctor.LevelWarn, "ghcr.io/pipelab-org/pipelock:3.8.0, used by a, b in ", "bottle pull ghcr.io/pipelab-org/pipelock:3.8.0"},
		"not pinned":    {"kind: pipelock, image: '" + ref + "'", doctor.LevelWarn, "is not pinned", "image: '" + ref + "@" + digest + "'"},
		"pinned":        {"image: '" + ref + "@" + digest + "'", doctor.LevelOK, "is pinned and present", ""},
		"another":       {"image: '" + ref + "@" + wrong + "'", doctor.LevelWarn, "has another digest in containerd's store: " + digest, "pull it again"},
		"not there yet": {"image: 'registry.test/other:2.3.0@" + wrong + "'", doctor.LevelOK, "is pinned and will be pulled", ""},
		"builtin":       {"kind: builtin", doctor.LevelOK, "no bottle in ", ""},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUser(t)
			u.write("bottle.yaml", "version: 1\nbottles:\n  a: {proxy: {"+c.proxy+"}}\n  b: {proxy: {"+c.proxy+"}}\nagents: {}\n")
			f := u.doctor(t, 0)["proxy image"]
			if f.Level != c.level || !strings.Contains(f.Detail, c.detail) || !strings.Contains(f.Fix, c.fix) {
				t.Errorf("got %+v; want %+v", f, c)
			}
		})
	}
	u := newUser(t)
	u.write("bottle.yaml", "version: 2\n")
	if f := u.doctor(t, 0)["proxy image"]; f.Level != doctor.LevelWarn || f.Fix != "bottle config check" {
		t.Errorf("a broken manifest: %+v", f)
	}
	if err := os.Remove(filepath.Join(u.dir, "bottle.yaml")); err != nil {
		t.Fatal(err)
	}
	if f := u.with("HOME="+u.dir).doctor(t, 0)["proxy image"]; f.Level != doctor.LevelOK || !strings.Contains(f.Detail, "no manifest") {
		t.Errorf("no manifest: %+v", f)
	}
}
