package leakcheck

import (
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestSnapshot leaves something of every kind behind, each of which the check must
// report until it is removed.
func TestSnapshot(t *testing.T) {
	dir := t.TempDir()
	// The first task of a namespace leaves directories behind.
	sh(t, dir, "ctr run --rm --runtime io.containerd.runc.v2 docker.io/library/bottle-demo:latest leakcheck true")
	for _, c := range []struct{ kind, create, remove string }{
		{"file", "touch /run/leakcheck-test", "rm /run/leakcheck-test"},
		// What a killed bottle left: directories of a runtime, of containerd and of bottle itself.
		{"file", "mkdir -p /run/bottle/leakcheck-test/runsc/x", "rm -r /run/bottle"},
		{"file", "mkdir -p $LAB_DISK/containerd/io.containerd.runtime.v2.task/$CONTAINERD_NAMESPACE/x", "rm -r $LAB_DISK/containerd/io.containerd.runtime.v2.task/$CONTAINERD_NAMESPACE/x"},
		{"file", "mkdir -p /run/bottle/.scratch-x", "rm -r /run/bottle"},
		{"mount", "mkdir mnt; mount -t tmpfs tmpfs mnt", "umount mnt"},
		{"cgroup", "mkdir /sys/fs/cgroup/leakcheck-test", "rmdir /sys/fs/cgroup/leakcheck-test"},
		{"loop device", "truncate -s 1M $CONTAINERD_NAMESPACE; losetup --find $CONTAINERD_NAMESPACE", "losetup --detach $(losetup --noheadings --output NAME --associated $CONTAINERD_NAMESPACE)"},
		// Its parent is the host's init.
		{"process", "setsid --fork sh -c 'echo $$ >pid; exec sleep 600' >/dev/null 2>&1; until [ -s pid ]; do :; done", "kill $(cat pid)"},
		{"network namespace", "touch net; unshare --net=net true", "umount net"},
		{"link", "ip link add leakcheck type bridge", "ip link delete leakcheck"},
		{"address", "ip address add 192.0.2.200/32 dev lo", "ip address delete 192.0.2.200/32 dev lo"},
		{"route", "ip route add blackhole 198.51.100.0/24", "ip route delete blackhole 198.51.100.0/24"},
		{"nftables", "nft add table ip leakcheck", "nft delete table ip leakcheck"},
		{"sysctl", "echo 1 >/proc/sys/net/ipv4/ip_forward", "echo 0 >/proc/sys/net/ipv4/ip_forward"},
		{"lease", "ctr leases create --id leakcheck", "ctr leases delete leakcheck"},
		{"snapshot", "ctr snapshots prepare leakcheck", "ctr snapshots rm leakcheck"},
		{"task", "ctr run --detach --runtime io.containerd.runc.v2 docker.io/library/bottle-demo:latest leakcheck sleep 600",
			"ctr tasks rm --force leakcheck; ctr containers rm leakcheck"},
		{"container", "ctr containers create docker.io/library/bottle-demo:latest leakcheck", "ctr containers rm leakcheck"},
	} {
		t.Run(c.kind, func(t *testing.T) {
			before, err := snapshot()
			if err != nil {
				t.Fatal(err)
			}
			sh(t, dir, c.create)
			after, err := snapshot()
			if err != nil {
				t.Error(err)
			}
			if diff := compare(before, after); !regexp.MustCompile(`(?m)^\+ ` + c.kind + ` `).MatchString(diff) {
				t.Errorf("not reported by the check: %s", diff)
			}
			sh(t, dir, c.remove)
			if diff := waitUnchanged(before, settleTimeout); diff != "" {
				t.Errorf("reported after its removal: %s", diff)
			}
		})
	}
}

// TestCompare checks that changes are reported in both directions.
func TestCompare(t *testing.T) {
	got := compare(state{"file a": true, "file b": true}, state{"file b": true, "link c": true})
	if want := "+ link c\n- file a"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func sh(t *testing.T, dir, script string) {
	t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, strings.TrimSpace(string(out)))
	}
}

// recorder is a test whose errors are recorded.
type recorder struct {
	name     string
	errors   []string
	cleanups []func()
}

func (r *recorder) Helper()                        {}
func (r *recorder) Name() string                   { return r.name }
func (r *recorder) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }
func (r *recorder) Errorf(format string, a ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, a...))
}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }

func (r *recorder) end() {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
}

// TestCheckOnce: a test is checked once, and its parts with it. The next test of the same
// name is checked again.
func TestCheckOnce(t *testing.T) {
	for range 2 {
		outer, part := &recorder{name: "TestX"}, &recorder{name: "TestX/part/detail"}
		CheckOnce(outer)
		CheckOnce(outer)
		CheckOnce(part)
		if len(outer.cleanups) != 1 || len(part.cleanups) != 0 {
			t.Errorf("%d checks of a test, %d of its part", len(outer.cleanups), len(part.cleanups))
		}
		outer.end()
	}
	alone, other := &recorder{name: "TestX/part"}, &recorder{name: "TestXY"}
	CheckOnce(alone)
	CheckOnce(other)
	if len(alone.cleanups) != 1 || len(other.cleanups) != 1 {
		t.Errorf("%d and %d checks of tests that nothing contains", len(alone.cleanups), len(other.cleanups))
	}
	alone.end()
	other.end()
}
