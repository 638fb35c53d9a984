package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const policyFile = "/etc/bottle/policy.yaml"

// setPolicy installs an administrator's policy until the test ends.
func setPolicy(t *testing.T, text string) {
	t.Helper()
	if _, err := os.Stat(policyFile); err == nil {
		t.Fatal("there is a policy already")
	}
	t.Cleanup(func() {
		if err := os.Remove(policyFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
	})
	changePolicy(t, text)
}

func changePolicy(t *testing.T, text string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(policyFile, []byte(text), 0o600), os.Chmod(policyFile, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// TestHostSettings: a user of sudo cannot choose what amounts to root. The control is
// root, whose choice has an effect.
func TestHostSettings(t *testing.T) {
	u := newUser(t)
	ada := u.asSudoer()
	dir := t.TempDir()
	for _, c := range []struct {
		args, env []string
		how, key  string
	}{
		{args: []string{"--address", "/tmp/none.sock"}, how: "--address /tmp/none.sock", key: "address"},
		{args: []string{"--namespace", "other"}, how: "--namespace other", key: "namespace"},
		{env: []string{"CONTAINERD_ADDRESS=/tmp/none.sock"}, how: "CONTAINERD_ADDRESS /tmp/none.sock", key: "address"},
		{env: []string{"CONTAINERD_NAMESPACE=other"}, how: "CONTAINERD_NAMESPACE other", key: "namespace"},
		{env: []string{"CONTAINERD_SNAPSHOTTER=native"}, how: "CONTAINERD_SNAPSHOTTER native", key: "snapshotter"},
		{env: []string{"BOTTLE_RUN_DIR=" + dir}, how: "BOTTLE_RUN_DIR " + dir, key: "run_dir"},
		{env: []string{"BOTTLE_STATE_DIR=" + dir}, how: "BOTTLE_STATE_DIR " + dir, key: "state_dir"},
		{env: []string{"CNI_PATH=" + dir}, how: "CNI_PATH " + dir, key: "cni_path"},
		{env: []string{"BOTTLE_CNI_CONF=" + dir}, how: "BOTTLE_CNI_CONF " + dir, key: "cni_conf"},
		{env: []string{"BOTTLE_HOSTS_DIR=" + dir}, how: "BOTTLE_HOSTS_DIR " + dir, key: "hosts_dir"},
		{env: []string{"BUILDKIT_HOST=unix:///tmp/none.sock"}, how: "BUILDKIT_HOST unix:///tmp/none.sock", key: "buildkit_host"},
	} {
		r := ada.with(c.env...).bottle(append(c.args, "list")...)
		want := "bottle: " + c.how + " is refused: only root chooses the " + strings.ReplaceAll(c.key, "_", " ") + "\n" +
			"hint: omit it, or ask root to set " + c.key + ", or to list it in users_may_set, in /etc/bottle/config.yaml\n"
		if r.code != 125 || r.stderr != want {
			t.Errorf("%s: exit %d\n%s", c.how, r.code, r.stderr)
		}
		if r := u.with(c.env...).bottle(append(c.args, "list")...); strings.Contains(r.stderr, "is refused") {
			t.Errorf("control: %s is refused to root:\n%s", c.how, r.stderr)
		}
	}
	if r := ada.bottle("pull", "--hosts-dir", dir, "x.test/y"); r.code != 125 || !strings.HasPrefix(r.stderr, "bottle: --hosts-dir "+dir+" is refused") {
		t.Errorf("--hosts-dir: exit %d\n%s", r.code, r.stderr)
	}
	if r := ada.bottle("list"); r.code != 0 {
		t.Errorf("control: exit %d\n%s", r.code, r.stderr)
	}
}

// TestPolicyAtWork: the administrator's policy bounds a user of sudo, and not root.
func TestPolicyAtWork(t *testing.T) {
	u := newUser(t)
	ada := u.asSudoer()
	sh := []string{"run", "sh", "--proxy", "builtin", "--yes", "-q", "--", "-c", "echo ran"}

	// Root must name another user's manifest.
	named := func(args ...string) []string {
		return append([]string{"--manifest", filepath.Join(u.dir, "bottle.yaml")}, args...)
	}
	ada.bottle(sh...).want(t, 0, "ran\n")
	runc := []string{"run", "sh", "--runtime", "runc", "--proxy", "builtin", "--yes", "-q", "--", "-c", "echo ran"}
	if r := ada.bottle(runc...); r.code != 125 || !strings.Contains(r.stderr, "runtime runc is refused: no policy allows it (runtimes in /etc/bottle/policy.yaml)") {
		t.Errorf("runc: exit %d\n%s", r.code, r.stderr)
	}
	u.bottle(named(runc...)...).want(t, 0, "ran\n")

	setPolicy(t, "version: 1\nruntimes: [runc, runsc]\nlimits: {memory: 512MiB}\negress: {never: [git.allowed.test]}\n")
	r := ada.bottle(sh...)
	if r.code != 125 || !strings.Contains(r.stderr, "bottle: host git.allowed.test is refused by egress.never in /etc/bottle/policy.yaml\n"+
		"hint: remove it from the manifest, or ask root to change egress.never in /etc/bottle/policy.yaml") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	u.bottle(named(sh...)...).want(t, 0, "ran\n")
	ada.bottle(append([]string{"run", "offline"}, runc[2:]...)...).want(t, 0, "ran\n")

	changePolicy(t, "version: 1\nlimits: {memory: 512MiB}\negress: {never: [never.test]}\nbuilds: {allowed: false}\n")
	l := ada.start("e2e-bounded")
	for _, want := range []string{"policy", "limits.memory: memory 512MiB instead of 4GiB", "egress.never: denies 1 host"} {
		if !strings.Contains(l.errs.String(), want) {
			t.Errorf("the plan lacks %q:\n%s", want, l.errs)
		}
	}
	oneLine(t, ada.bottle("allow", "e2e-bounded", "never.test"), "host never.test is refused by egress.never", "ask root to change egress.never")
	if r := ada.bottle("allow", "e2e-bounded", "other.test"); r.code != 0 {
		t.Errorf("control: exit %d\n%s", r.code, r.stderr)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
	u.write("Dockerfile", "FROM scratch\n")
	u.chmod(filepath.Join(u.dir, "Dockerfile"), 0o644)
	oneLine(t, ada.bottle("build", "-q", "."), "a build is refused by builds.allowed", "use an image that exists")

	// A file that others can write to stops users of sudo.
	u.chmod(policyFile, 0o666)
	oneLine(t, ada.bottle("list"), "policy.yaml is writable by others than root (mode 0666)", "chmod go-w /etc/bottle/policy.yaml")
	if r := u.bottle("list"); r.code != 0 {
		t.Errorf("root: exit %d\n%s", r.code, r.stderr)
	}
	changePolicy(t, "version: 1\nruntime: [runsc]\n")
	oneLine(t, ada.bottle("list"), `/etc/bottle/policy.yaml:2:1: unknown key "runtime" in the policy`, `did you mean "runtimes"?`)
	if r := u.bottle("policy", "check"); r.code != 125 || !strings.Contains(r.stderr, `unknown key "runtime"`) {
		t.Errorf("policy check: exit %d\n%s", r.code, r.stderr)
	}
}
