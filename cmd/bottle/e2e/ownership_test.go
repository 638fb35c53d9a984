package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestSimilarNames: neither the end of a bottle nor a cleanup touches what other tools have
// named like bottle's own objects.
func TestSimilarNames(t *testing.T) {
	ns := os.Getenv("CONTAINERD_NAMESPACE")
	for _, c := range []struct{ create, remove string }{
		{"ip netns add claude-bottle-x", "ip netns delete claude-bottle-x"},
		{"ip link add bottle1 type bridge", "ip link delete bottle1"},
		{"ip link add bottle00 type bridge", "ip link delete bottle00"},
		{"ip link add veth1a2b3c4d type veth peer name internal0", "ip link delete veth1a2b3c4d"},
		{"nft add table ip bottle", "nft delete table ip bottle"},
		{"nft add table inet bottle2", "nft delete table inet bottle2"},
		{"nft add table inet bottle-egress", "nft delete table inet bottle-egress"},
		{"ctr leases create --id claude-bottle-x", "ctr leases delete claude-bottle-x"},
		{"ctr snapshots prepare claude-bottle-x", "ctr snapshots rm claude-bottle-x"},
		{"ctr snapshots prepare claude-bottle-mine.proxy.other", "ctr snapshots rm claude-bottle-mine.proxy.other"},
		{"ctr run --detach --runtime io.containerd.runc.v2 docker.io/library/bottle-demo:latest claude-bottle-y sleep 600",
			"ctr tasks rm --force claude-bottle-y; ctr containers rm claude-bottle-y"},
		{"mkdir -p /run/bottle2/" + ns + "/claude-bottle-x", "rm -r /run/bottle2"},
		{"mkdir -p /sys/fs/cgroup/pids/claude-bottle-x", "rmdir /sys/fs/cgroup/pids/claude-bottle-x"},
	} {
		t.Cleanup(func() { shell(t, c.remove) })
		shell(t, c.create)
	}
	leakcheck.Check(t)
	// Programs that look like bottle's.
	dir := t.TempDir()
	shell(t, "cp $(command -v sleep) "+filepath.Join(dir, "runsc-sandbox"))
	stranger := exec.Command(filepath.Join(dir, "runsc-sandbox"), "600")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stranger.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("another program was ended: %v", err)
		}
		_ = stranger.Process.Kill() // an error was reported
		_ = stranger.Wait()
	})
	u := newUser(t)
	u.run("sh", "-c", "echo out").want(t, 0, "out\n")
	l := u.start("claude-bottle-mine")
	l.signal(syscall.SIGKILL)
	l.wait()
	if r := u.bottle("cleanup", "--yes"); r.code != 0 {
		t.Errorf("cleanup: exit %d: %s", r.code, r.stderr)
	}
}

func shell(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}
