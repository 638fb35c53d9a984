package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// runDir mounts a run directory of its own.
func runDir(t *testing.T, options string) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "small-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(dir) })
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestFullRunDir: a run directory without space or inodes is reported as that, and nothing
// is left. In the control, more space is enough.
func TestFullRunDir(t *testing.T) {
	for _, tt := range []struct{ options, want string }{
		{"size=64k", "no space left"},
		{"nr_inodes=20", "no inodes left"},
		{"size=16M", ""},
	} {
		for _, runtime := range []string{"runsc", "runc"} {
			t.Run(tt.options+"/"+runtime, func(t *testing.T) {
				leakcheck.Check(t)
				dir := runDir(t, tt.options)
				r := newUser(t).with("BOTTLE_RUN_DIR="+dir).bottle("run", "sh", "--proxy", "builtin", "--runtime", runtime, "--yes", "--", "-c", "true")
				switch {
				case tt.want == "" && r.code != 0:
					t.Errorf("control: exit %d: %s", r.code, r.stderr)
				case tt.want != "" && (r.code != 125 || !strings.Contains(r.stderr, "bottle: run directory "+dir+": "+tt.want+": ") ||
					!strings.Contains(r.stderr, "\nhint: ")):
					t.Errorf("exit %d: %s", r.code, r.stderr)
				}
				left, err := os.ReadDir(dir)
				if tt.want == "" { // a launch that succeeds leaves what it has proved
					left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return e.Name() == ".proven" })
				}
				if err != nil || len(left) > 0 {
					t.Errorf("left in the run directory: %v, %v", left, err)
				}
			})
		}
	}
}

// TestRemovalInFullRunDir: the removal of a running bottle needs neither space nor inodes.
func TestRemovalInFullRunDir(t *testing.T) {
	for _, runtime := range []string{"runsc", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			leakcheck.Check(t)
			dir := runDir(t, "size=16M")
			u := newUser(t).with("BOTTLE_RUN_DIR=" + dir)
			const name = "claude-bottle-full"
			l := begin(t, u.command("run", "wait", "--proxy", "builtin", "--runtime", runtime, "--yes", "--name", name), name)
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				t.Fatal(err)
			}
			options := fmt.Sprintf("size=%d,nr_inodes=%d", (st.Blocks-st.Bfree)*uint64(st.Bsize), st.Files-st.Ffree) //nolint:gosec // positive
			if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, options); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() { // for the following tests
					_ = unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=16M,nr_inodes=0")
					u.bottle("cleanup", "--yes")
				}
			})
			if err := os.WriteFile(filepath.Join(dir, "more"), nil, 0o600); !errors.Is(err, unix.ENOSPC) {
				t.Fatalf("invalid test: the run directory is not full: %v", err)
			}
			if r := u.exec(name, "true"); r.code != 125 || !strings.Contains(r.stderr, "no space left on device") {
				t.Errorf("exec: exit %d: %s", r.code, r.stderr)
			}
			if r := u.bottle("rm", "-f", name); r.code != 0 {
				t.Errorf("rm: exit %d: %s", r.code, r.stderr)
			}
			l.wait()
			left, err := os.ReadDir(dir)
			// What the launch has proved stays for the next one.
			left = slices.DeleteFunc(left, func(e os.DirEntry) bool { return e.Name() == ".proven" })
			if err != nil || len(left) > 0 {
				t.Errorf("left in the run directory: %v, %v", left, err)
			}
		})
	}
}

// diskHost is a user of a second containerd, whose store and bottle's state directory are
// on a disk of their own, with the demo image.
func diskHost(t *testing.T, mount func(disk string) error) (u user, disk string) {
	t.Helper()
	address, disk := labtest.ContainerdOn(t, mount)
	file := filepath.Join(t.TempDir(), "image.tar")
	const image = "docker.io/library/bottle-demo:latest"
	ctr(t, "images", "export", file, image)
	ctr(t, "--address", address, "images", "import", file)
	u = newUser(t).with("CONTAINERD_ADDRESS="+address, "BOTTLE_STATE_DIR="+filepath.Join(disk, "state"), "CLAUDE_BOTTLE_IMAGE="+image)
	u.run("sh", "-c", "echo control").want(t, 0, "control\n")
	return u, disk
}

// inStore lists what containerd has of bottles.
func (u user) inStore() string {
	u.t.Helper()
	var out []string
	for _, args := range [][]string{{"containers", "ls", "-q"}, {"tasks", "ls", "-q"}, {"snapshots", "ls"}, {"leases", "ls", "-q"}} {
		cmd := exec.Command("ctr", args...)
		cmd.Env = append(os.Environ(), u.env...)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		text, err := cmd.Output()
		if err != nil {
			u.t.Fatalf("ctr %v: %v: %s", args, err, &errs)
		}
		out = append(out, string(text))
	}
	return strings.Join(out, "--\n")
}

// TestFullDisk: a disk without space or inodes is reported as that, and when there is
// space again nothing is left.
func TestFullDisk(t *testing.T) {
	for _, what := range []string{"space", "inodes"} {
		t.Run(what, func(t *testing.T) {
			leakcheck.Check(t)
			u, disk := diskHost(t, func(disk string) error { return unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256M") })
			before := u.inStore()
			var st unix.Statfs_t
			if err := unix.Statfs(disk, &st); err != nil {
				t.Fatal(err)
			}
			options := fmt.Sprintf("size=%d", (st.Blocks-st.Bfree)*uint64(st.Bsize)) //nolint:gosec // positive
			if what == "inodes" {
				options = fmt.Sprintf("nr_inodes=%d", st.Files-st.Ffree)
			}
			if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, options); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			r := u.run("sh", "-c", "true")
			if r.code != 125 || !strings.Contains(r.stderr, "no space left on device") {
				t.Errorf("exit %d: %s", r.code, r.stderr)
			}
			t.Logf("failed after %s: %s", time.Since(start).Round(time.Millisecond), r.stderr[strings.LastIndex(r.stderr, "\nbottle: ")+1:])
			if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=256M,nr_inodes=0"); err != nil {
				t.Fatal(err)
			}
			if r := u.bottle("cleanup", "--yes"); r.code != 0 {
				t.Errorf("cleanup: exit %d: %s", r.code, r.stderr)
			}
			if after := u.inStore(); after != before {
				t.Errorf("left in containerd:\n%s\nbefore:\n%s", after, before)
			}
			u.run("sh", "-c", "echo again").want(t, 0, "again\n")
		})
	}
}

// TestReadOnlyDisk: the kernel has made the disk of containerd and bottle read-only, as it
// does after an error. Bottle reports that and leaves nothing on the host.
func TestReadOnlyDisk(t *testing.T) {
	leakcheck.Check(t)
	file := filepath.Join(t.TempDir(), "disk")
	u, disk := diskHost(t, func(disk string) error {
		script := `truncate -s 512M "$1" && mkfs.ext4 -q -F "$1" && mount -o loop,errors=remount-ro "$1" "$2"`
		out, err := exec.Command("sh", "-c", script, "sh", file, disk).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	source, err := exec.Command("findmnt", "-no", "SOURCE", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	trigger := filepath.Join("/sys/fs/ext4", filepath.Base(strings.TrimSpace(string(source))), "trigger_fs_error")
	if err := os.WriteFile(trigger, []byte("test\n"), 0o200); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(disk, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Fatalf("invalid test: the disk is not read-only: %v", err)
	}
	if r := u.run("sh", "-c", "true"); r.code != 125 || !strings.Contains(r.stderr, "read-only file system") {
		t.Errorf("exit %d: %s", r.code, r.stderr)
	}
	if r := u.bottle("cleanup", "--yes"); r.code != 0 {
		t.Errorf("cleanup: exit %d: %s", r.code, r.stderr)
	}
}

// TestStoppedContainerd: containerd does not answer for 20 s. Bottle waits or fails with a
// clear error, does not hang, and leaves nothing.
func TestStoppedContainerd(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	text, err := os.ReadFile("/run/lab/containerd.pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	l := u.start("claude-bottle-paused")
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resumed := make(chan struct{})
	time.AfterFunc(20*time.Second, func() { _ = syscall.Kill(pid, syscall.SIGCONT); close(resumed) })
	r := u.bottle("list")
	if r.code != 125 || !strings.Contains(r.stderr, "cannot connect to containerd") || !strings.Contains(r.stderr, "\nhint: ") {
		t.Errorf("list: exit %d: %s", r.code, r.stderr)
	}
	code := l.end() // the session ends while containerd is stopped
	<-resumed
	if code != 0 {
		t.Errorf("the session: exit %d: %s", code, l.errs)
	}
	u.run("sh", "-c", "echo again").want(t, 0, "again\n")
}

// TestTerminatedLaunch sends signals during launches: the exit code is docker's, and
// nothing is left.
func TestTerminatedLaunch(t *testing.T) {
	for s, code := range map[syscall.Signal]int{syscall.SIGTERM: 143, syscall.SIGINT: 130, syscall.SIGHUP: 129} {
		t.Run(s.String(), func(t *testing.T) {
			leakcheck.Check(t)
			u := newUser(t)
			const name = "claude-bottle-ended"
			cmd := u.command("run", "sh", "--proxy", "builtin", "--yes", "--name", name, "--", "-c", "sleep 1000")
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			awaitClaim(t, cmd, name)
			if err := cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // the exit code is checked
			if got := cmd.ProcessState.ExitCode(); got != code {
				t.Errorf("exit %d; want %d: %s", got, code, &errs)
			}
		})
	}
}

// awaitClaim waits until a launch has claimed its name.
func awaitClaim(t *testing.T, cmd *exec.Cmd, name string) {
	t.Helper()
	file := fmt.Sprintf("/run/bottle/%s/%s/launching", os.Getenv("CONTAINERD_NAMESPACE"), name)
	for {
		if _, err := os.Stat(file); err == nil {
			return
		}
		if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
			t.Fatal("the launch was never seen")
		}
	}
}
