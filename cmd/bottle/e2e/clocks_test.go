package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// atClock is a command whose clocks of monotonic and boot time differ from those of all
// other processes (time_namespaces(7)).
func (u user) atClock(seconds int, args ...string) *exec.Cmd {
	u.t.Helper()
	cmd := u.command(args...)
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		u.t.Fatal(err)
	}
	offset := strconv.Itoa(seconds)
	cmd.Args = append([]string{"unshare", "--time", "--monotonic", offset, "--boottime", offset, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = unshare
	return cmd
}

// TestClocks uses one bottle from processes whose monotonic clocks differ by years: none
// expires or waits by the time of another.
func TestClocks(t *testing.T) {
	u := newUser(t)
	const name = "claude-bottle-clock"
	for _, offset := range []int{300_000_000, -60} { // below zero there is no time
		l := begin(t, u.atClock(offset, "run", "wait", "--proxy", "builtin", "--yes", "--name", name), name)
		finish(t, u.atClock(-offset/10_000_000-30, "exec", name, "echo", "hi")).want(t, 0, "hi\n")
		if s := u.listed()[name]; s.Status != "running" {
			t.Errorf("offset %d: list: %+v", offset, s)
		}
		l.signal(syscall.SIGKILL)
		l.wait()
		if r := finish(t, u.atClock(-30, "cleanup", "--yes")); r.code != 0 {
			t.Errorf("offset %d: cleanup: exit %d: %s", offset, r.code, r.stderr)
		}
		if list := u.listed("-a"); len(list) != 0 {
			t.Errorf("offset %d: left after cleanup: %v", offset, list)
		}
	}
}

// TestDatesOfFiles gives bottle's files dates in the past and in the future, as after a
// change of the clock: a running bottle works, one that is being launched and kept work are
// no leftovers, and a dead one is.
func TestDatesOfFiles(t *testing.T) {
	u := newUser(t)
	namespace := os.Getenv("CONTAINERD_NAMESPACE")
	t.Cleanup(func() { u.bottle("cleanup", "--yes", "--discard").want(t, 0, "") })
	for _, year := range []int{1971, 2100} {
		when := time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC)
		date := func() {
			t.Helper()
			n := 0
			for _, dir := range []string{"/run/bottle", "/var/lib/bottle"} {
				n += setDates(t, dir, when)
			}
			if n < 5 {
				t.Fatalf("invalid test: %d files", n)
			}
		}
		l := begin(t, u.command("run", "wait", "--proxy", "builtin", "--yes", "--cwd", "--name", "claude-bottle-dated"), "claude-bottle-dated")
		date()
		u.exec("dated", "sh", "-c", "echo hi; echo x >/workspace/new").want(t, 0, "hi\n")
		if r := u.bottle("allow", "dated", "refused.test"); r.code != 0 {
			t.Errorf("%d: allow: exit %d: %s", year, r.code, r.stderr)
		}
		if s := u.listed()["claude-bottle-dated"]; s.Status != "running" {
			t.Errorf("%d: list: %+v", year, s)
		}

		launching := u.command("run", "sh", "--proxy", "builtin", "--yes", "--name", "claude-bottle-slow", "--", "-c", "true")
		if err := launching.Start(); err != nil {
			t.Fatal(err)
		}
		awaitClaim(t, launching, "claude-bottle-slow")
		if err := launching.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		date()
		l.signal(syscall.SIGKILL)
		l.wait()
		if r := u.bottle("cleanup", "--yes"); r.code != 0 || !strings.Contains(r.stderr, "claude-bottle-slow is being launched by another process and stays.") {
			t.Errorf("%d: cleanup: exit %d: %s", year, r.code, r.stderr)
		}
		if err := launching.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if err := launching.Wait(); err != nil {
			t.Errorf("%d: the bottle that was being launched: %v", year, err)
		}

		date()
		if s := u.listed("-a")["claude-bottle-dated"]; s.Status != "kept" || s.Work == nil || !s.Work.Unfetched {
			t.Errorf("%d: kept work: %+v", year, s)
		}
		if _, err := os.Stat(filepath.Join("/run/bottle", namespace, "claude-bottle-dated")); err == nil {
			t.Errorf("%d: the dead bottle is left", year)
		}
		u.bottle("cleanup", "--yes")
		u.bottle("apply", "dated").want(t, 0, "A new\n")
		u.bottle("rm", "--discard", "dated").want(t, 0, "claude-bottle-dated\n")
		if err := os.Remove(filepath.Join(u.dir, "new")); err != nil {
			t.Fatal(err)
		}
	}
}

// setDates sets the times of all files below a directory, and returns their number.
func setDates(t *testing.T, dir string, when time.Time) (n int) {
	t.Helper()
	times := []unix.Timespec{unix.NsecToTimespec(when.UnixNano()), unix.NsecToTimespec(when.UnixNano())}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() == "workspace" { // the agent's own files
			return filepath.SkipDir
		}
		if unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW) == nil { // a pinned namespace has none
			n++
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
