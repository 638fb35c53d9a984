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

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

func TestList(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	if r := u.bottle("list"); r.code != 0 || r.stdout != "" || r.stderr != "No bottles are running.\n" {
		t.Errorf("no bottle: exit %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	u.bottle("list", "--json").want(t, 0, "[]\n")
	l := u.start("claude-bottle-listed")
	r := u.bottle("list")
	fields := strings.Fields(strings.SplitN(r.stdout, "\n", 2)[1])
	want := []string{"claude-bottle-listed", "wait", "docker.io/library/claude-bottle:latest", "runsc", "running"}
	if len(fields) != 6 || strings.Join(fields[:5], " ") != strings.Join(want, " ") {
		t.Errorf("list:\n%s", r.stdout)
	}
	var list []struct {
		Name    string
		Status  string
		Created time.Time
	}
	if err := json.Unmarshal([]byte(u.bottle("list", "--json").stdout), &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Name != l.name || list[0].Status != "running" || time.Since(list[0].Created) > longest {
		t.Errorf("list --json: %+v", list)
	}
	// A running bottle is removed only with -f; its short name works too.
	if r := u.bottle("rm", "listed"); r.code != 125 || !strings.Contains(r.stderr, "bottle rm -f claude-bottle-listed") {
		t.Errorf("rm: exit %d\n%s", r.code, r.stderr)
	}
	u.bottle("rm", "-f", "listed").want(t, 0, "claude-bottle-listed\n")
	// Its session ends, and the teardown of `bottle run` succeeds without work.
	if code := l.wait(); code != 137 {
		t.Errorf("the session of a removed bottle: exit %d\n%s", code, l.errs)
	}
}

// TestCrash kills `bottle run`, which then removes nothing. Cleanup removes
// the bottle, and does not remove resources with similar names.
func TestCrash(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-crashed")
	l.signal(syscall.SIGKILL)
	l.wait()
	stranger(t, "not-claude-bottle-x")
	if r := u.bottle("list"); !strings.Contains(r.stdout, "claude-bottle-crashed") {
		t.Errorf("the orphan is not listed:\n%s", r.stdout)
	}
	seen := u.bottle("cleanup", "--dry-run")
	for _, want := range []string{
		"claude-bottle-crashed (running)", "claude-bottle-crashed.proxy (running)", "agent.netns", "proxy.netns", "snapshot claude-bottle-crashed",
	} {
		if !strings.Contains(seen.stderr, want) {
			t.Errorf("cleanup does not show %q:\n%s", want, seen.stderr)
		}
	}
	if strings.Contains(seen.stderr, "not-claude") {
		t.Errorf("cleanup shows what is not bottle's:\n%s", seen.stderr)
	}
	if r := u.says("n\n").bottle("cleanup"); r.code != 1 {
		t.Errorf("answer no: exit %d", r.code)
	}
	if r := u.bottle("cleanup", "--no-input"); r.code != 125 {
		t.Errorf("--no-input: exit %d", r.code)
	}
	if again := u.bottle("cleanup", "--dry-run"); again.stderr != seen.stderr {
		t.Errorf("removed before the y:\n%s", again.stderr)
	}
	u.says("y\n").bottle("cleanup").want(t, 0, "")
	if r := u.bottle("cleanup"); r.code != 0 || !strings.Contains(r.stderr, "There is nothing to remove.") {
		t.Errorf("second cleanup: exit %d\n%s", r.code, r.stderr)
	}
}

func stranger(t *testing.T, name string) {
	t.Helper()
	ctr(t, "containers", "create", "docker.io/library/claude-bottle:latest", name, "true")
	t.Cleanup(func() { ctr(t, "containers", "rm", name) })
}

func ctr(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("ctr", args...).CombinedOutput(); err != nil {
		t.Fatalf("ctr %v: %v: %s", args, err, out)
	}
}

// setImmutable sets the inode flags of a directory (ioctl_iflags(2)).
func setImmutable(t *testing.T, dir string, flags int) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		t.Fatal(err)
	}
}

// TestCleanupFailure checks that if one of two bottles cannot be removed, the other is
// removed and an error names the first.
func TestCleanupFailure(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	first, second := u.start("claude-bottle-a"), u.start("claude-bottle-b")
	for _, l := range []*live{first, second} {
		l.signal(syscall.SIGKILL)
		l.wait()
	}
	// An immutable directory in its directory prevents the removal of that.
	busy := filepath.Join("/run/bottle", os.Getenv("CONTAINERD_NAMESPACE"), first.name, "busy")
	if err := os.Mkdir(busy, 0o700); err != nil {
		t.Fatal(err)
	}
	setImmutable(t, busy, 0x10) // FS_IMMUTABLE_FL (linux/fs.h)
	r := u.bottle("cleanup", "--yes")
	setImmutable(t, busy, 0)
	if r.code != 125 || !strings.Contains(r.stderr, "bottle: claude-bottle-a: ") || strings.Contains(r.stderr, "bottle: claude-bottle-b") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	if left := u.bottle("cleanup", "--dry-run").stderr; !strings.Contains(left, first.name) || strings.Contains(left, second.name) {
		t.Errorf("left:\n%s", left)
	}
	u.bottle("cleanup", "--yes").want(t, 0, "")
}

func TestPlan(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TEST_KEY=hush-hush")
	r := u.bottle("run", "claude", "--proxy", "builtin", "--dry-run", "--json", "--", "-p", "hi")
	var plan struct {
		Agent, Bottle, Name, Image, Runtime string
		Command                             []string
		Env                                 []map[string]any
		Egress                              struct{ Allow []string }
		Network                             struct{ Internal, Egress, Bridge string }
	}
	if err := json.Unmarshal([]byte(r.stdout), &plan); err != nil {
		t.Fatalf("%v in %s\n%s", err, r.stdout, r.stderr)
	}
	if plan.Name != "claude-bottle-claude" || plan.Runtime != "runsc" || strings.Join(plan.Command, " ") != "claude -p hi" ||
		plan.Image != "docker.io/library/claude-bottle:claude" || len(plan.Env) != 5 || plan.Egress.Allow[0] != "api.anthropic.com" ||
		plan.Network.Internal != "10.77.0.0/30" || plan.Network.Bridge != "bottle0" {
		t.Errorf("plan: %+v", plan)
	}
	text := u.bottle("run", "claude", "--proxy", "builtin", "--dry-run")
	for _, want := range []string{"claude-bottle-claude", "runsc", "api.anthropic.com", "ANTHROPIC_API_KEY (forwarded from TEST_KEY; placeholder, inserted for api.anthropic.com:443)", "memory 4 GiB"} {
		if !strings.Contains(text.stderr, want) {
			t.Errorf("no %q in the plan:\n%s", want, text.stderr)
		}
	}
	if all := r.stdout + r.stderr + text.stdout + text.stderr; strings.Contains(all, "hush-hush") {
		t.Errorf("a plan shows a value:\n%s", all)
	}
}

func TestTimings(t *testing.T) {
	leakcheck.Check(t)
	r := newUser(t).bottle("run", "sh", "--proxy", "builtin", "--yes", "--timings", "--", "-c", "true")
	for _, step := range []string{"claim name", "create namespaces", "attach egress network", "start proxy", "start agent", "start session", "remove"} {
		if !strings.Contains(r.stderr, step+"\n") {
			t.Errorf("no time of %q:\n%s", step, r.stderr)
		}
	}
}
