package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

const manifest = `
version: 1
bottles:
  dev:
    env: {LOG_LEVEL: debug}
    egress: {allow: [allowed.test, git.allowed.test, "*.wild.test"]}
  claude:
    image: claude-bottle:claude
    env:
      ANTHROPIC_API_KEY: {from: TEST_KEY}
      DISABLE_AUTOUPDATER: 1
      CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC: 1
      CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL: 1
      CLAUDE_CODE_MAX_RETRIES: 0
    egress: {allow: [api.anthropic.com]}
  nothing: {}
agents:
  sh: {bottle: dev, command: [sh]}
  wait: {bottle: dev, command: [sh, -c, "echo ready; cat"]}
  trap: {bottle: dev, command: [sh, -c, "trap 'exit 9' INT; echo ready; sleep 1000 >/dev/null & wait"]}
  deaf: {bottle: dev, command: [sh, -c, "trap '' INT; echo ready; cat"]}
  claude: {bottle: claude, command: [claude]}
  offline: {bottle: nothing, command: [sh]}
`

// longest bounds any one command of a test.
const longest = 3 * time.Minute

// user runs bottle in a directory with a manifest, which bottle trusts
// unless the test is about that.
type user struct {
	t     *testing.T
	dir   string
	env   []string // over the test's own
	stdin io.Reader
	// untrusting: no --trust is added to bottle run.
	untrusting bool
}

// newUser returns a user. The test is checked for what it leaves on the host. If it fails,
// all bottles are removed, because the following tests would fail over them; but not by a subtest,
// beside which others may run.
func newUser(t *testing.T) user {
	t.Helper()
	leakcheck.CheckOnce(t)
	u := user{t: t, dir: t.TempDir()}
	u.write("bottle.yaml", manifest)
	t.Cleanup(func() {
		if t.Failed() && !strings.Contains(t.Name(), "/") {
			for _, name := range strings.Fields(u.bottle("list", "-a", "-q").stdout) {
				t.Logf("remove %s: %s", name, u.bottle("rm", "-f", "--discard", name).stderr)
			}
		}
	})
	return u
}

func (u user) write(name, text string) {
	u.t.Helper()
	if err := os.WriteFile(filepath.Join(u.dir, name), []byte(text), 0o600); err != nil {
		u.t.Fatal(err)
	}
}

func (u user) with(env ...string) user {
	u.env = append(append([]string{}, u.env...), env...)
	return u
}

func (u user) says(stdin string) user {
	u.stdin = strings.NewReader(stdin)
	return u
}

// command returns a command of bottle's. If it hangs, the test fails and the command is
// ended with the stacks of its goroutines on standard error. It must end before the test.
func (u user) command(args ...string) *exec.Cmd { return u.commandFor(longest, args...) }

// commandFor is command for one that may take longer.
func (u user) commandFor(limit time.Duration, args ...string) *exec.Cmd {
	// The end of the test does not interrupt a teardown.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(u.t.Context()), limit)
	if i := slices.Index(args, "run"); i >= 0 && !u.untrusting {
		args = slices.Insert(slices.Clone(args), i+1, "--trust")
	}
	cmd := exec.CommandContext(ctx, labtest.Program(u.t), args...)
	cmd.Dir = u.dir
	cmd.Env = append(append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(u.dir, ".state")), u.env...)
	cmd.Stdin = u.stdin
	reportHang(u.t, cmd, limit)
	u.t.Cleanup(func() {
		defer cancel()
		if cmd.Process != nil && cmd.ProcessState == nil && !ended(cmd.Process.Pid) {
			u.t.Errorf("bottle %s is running at the end of the test", strings.Join(args, " "))
			_ = abort(cmd.Process)
		}
	})
	return cmd
}

// reportHang makes the end of a command's context an error of the test.
func reportHang(t *testing.T, cmd *exec.Cmd, limit time.Duration) {
	cmd.Cancel = func() error {
		if ended(cmd.Process.Pid) {
			return os.ErrProcessDone
		}
		t.Errorf("bottle %s hangs: still running after %s", strings.Join(cmd.Args[1:], " "), limit)
		return abort(cmd.Process)
	}
	// For the stacks, and for pipes that children of the command hold.
	cmd.WaitDelay = 10 * time.Second
}

// abort ends a Go program with the stacks of all its goroutines. Bottle forwards SIGQUIT
// to its session.
func abort(p *os.Process) error { return p.Signal(syscall.SIGABRT) }

// ended reports whether a process has ended, waited for or not.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(stat, []byte(") Z "))
}

// logStacks shows the stacks of a command that was aborted.
func logStacks(t *testing.T, stderr string) {
	t.Helper()
	if _, stacks, ok := strings.Cut(stderr, "SIGABRT: abort"); ok {
		t.Logf("the stacks of the command:%s", stacks)
	}
}

type result struct {
	stdout, stderr string
	code           int
}

// bottle runs bottle to its end.
func (u user) bottle(args ...string) result {
	u.t.Helper()
	return finish(u.t, u.command(args...))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("%v; standard error:\n%s", err, &errs)
	}
	logStacks(t, errs.String())
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// run runs an agent with arguments, without a question.
func (u user) run(agent string, args ...string) result {
	u.t.Helper()
	return u.bottle(append([]string{"run", agent, "--proxy", "builtin", "--yes", "--"}, args...)...)
}

func (r result) want(t *testing.T, code int, stdout string) {
	t.Helper()
	if r.code != code || r.stdout != stdout {
		t.Errorf("exit %d and %q; want %d and %q; standard error:\n%s", r.code, r.stdout, code, stdout, r.stderr)
	}
}

// live is a bottle whose session waits for the end of its standard input.
type live struct {
	t     *testing.T
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
	errs  *bytes.Buffer
	name  string
	ended bool
}

// start launches a bottle and returns when its agent has spoken.
func (u user) start(name string) *live {
	u.t.Helper()
	return u.startAgent("wait", name)
}

func (u user) startAgent(agent, name string) *live {
	u.t.Helper()
	return begin(u.t, u.command("run", agent, "--proxy", "builtin", "--yes", "--name", name), name)
}

// begin starts a command of bottle's that says ready and then waits for the end
// of its standard input.
func begin(t *testing.T, cmd *exec.Cmd, name string) *live {
	t.Helper()
	l := &live{t: t, cmd: cmd, errs: &bytes.Buffer{}, name: name}
	cmd.Stderr = l.errs
	var err error
	if l.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.out = bufio.NewReader(out)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.end() })
	if line, err := l.out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the agent said %q, %v; standard error:\n%s", line, err, l.errs)
	}
	return l
}

// end ends the session and returns bottle's exit code.
func (l *live) end() int {
	l.t.Helper()
	_ = l.stdin.Close() // closed already where wait was called
	return l.wait()
}

// wait waits for an end that has another reason.
func (l *live) wait() int {
	l.t.Helper()
	if l.ended {
		return l.cmd.ProcessState.ExitCode()
	}
	l.ended = true
	_, _ = io.Copy(io.Discard, l.out)
	if err := l.cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		l.t.Error(err)
	}
	logStacks(l.t, l.errs.String())
	return l.cmd.ProcessState.ExitCode()
}

// gone reports whether bottle's process has ended, waited for or not.
func (l *live) gone() bool { return ended(l.cmd.Process.Pid) }

func (l *live) signal(s syscall.Signal) {
	l.t.Helper()
	if err := l.cmd.Process.Signal(s); err != nil {
		l.t.Fatal(err)
	}
}

// exec runs a command in the bottle.
func (u user) exec(name string, command ...string) result {
	u.t.Helper()
	return u.bottle(append([]string{"exec", name}, command...)...)
}
