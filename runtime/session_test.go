package runtime_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// TestSessions runs all sessions in one agent per runtime: a session must not affect
// the next one.
func TestSessions(t *testing.T) {
	leakcheck.Check(t)
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		cfg.Env = []string{"GREETING=hello", "LANG=over"}
		started(t, c, cfg)
		for _, s := range []struct {
			name string
			test func(*testing.T, *runtime.Client, string)
		}{
			{"exit codes", exitCodes},
			{"signal", signalled},
			{"stdin", stdin},
			{"stdin without EOF", openStdin},
			{"large output", largeOutput},
			{"slow reader", slowReader},
			{"terminal", terminal},
			{"resize", resize},
			{"missing command", missingCommand},
			{"background child", backgroundChild},
			{"orphans", orphans},
			{"environment", environment},
			{"concurrent", concurrent},
			{"concurrent empty input", emptyInput},
		} {
			t.Run(s.name, func(t *testing.T) {
				s.test(t, c, cfg.Name)
				noSessions(t, c, cfg.Name)
			})
		}
	})
}

// noSessions checks that all session directories are gone.
func noSessions(t *testing.T, c *runtime.Client, name string) {
	t.Helper()
	entries, err := os.ReadDir(c.Dir(name))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "session-") {
			t.Errorf("session directory left behind: %s", e.Name())
		}
	}
}

func exitCodes(t *testing.T, c *runtime.Client, name string) {
	for line, want := range map[string]int{
		"true": 0, "false": 1, "exit 42": 42, "exit 255": 255,
		"kill -TERM $$": 128 + 15, "kill -KILL $$": 128 + 9, "kill -SEGV $$": 128 + 11,
	} {
		r := run(t, c, name, runtime.SessionConfig{Args: []string{"bash", "-c", "echo out; echo err >&2; " + line}})
		if r.code != want || r.out != "out\n" || r.err != "err\n" {
			t.Errorf("%s: %+v, want exit code %d", line, r, want)
		}
	}
}

func signalled(t *testing.T, c *runtime.Client, name string) {
	out := newWatched()
	s, err := c.Exec(ctx(t), name, runtime.SessionConfig{
		Args:   []string{"bash", "-c", `trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done`},
		Stdout: out, Stderr: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	out.await(t, "ready")
	must(t, s.Signal(ctx(t), syscall.SIGINT))
	if code, err := wait(t, s); code != 7 || err != nil {
		t.Errorf("interrupted: %d, %v; want 7", code, err)
	}
}

func stdin(t *testing.T, c *runtime.Client, name string) {
	for _, text := range []string{"", "hello", strings.Repeat("0123456789abcdef", 1<<16)} {
		r := run(t, c, name, runtime.SessionConfig{Args: []string{"cat"}, Stdin: strings.NewReader(text)})
		if r.code != 0 || r.out != text {
			t.Errorf("cat of %d bytes: exit code %d, %d bytes, %s", len(text), r.code, len(r.out), r.err)
		}
	}
	if r := run(t, c, name, runtime.SessionConfig{Args: []string{"cat"}}); r.code != 0 || r.out != "" {
		t.Errorf("cat without input: %+v", r)
	}
}

// openStdin: the command ends while its input is still open, as with a terminal.
func openStdin(t *testing.T, c *runtime.Client, name string) {
	r, w := io.Pipe()
	defer func() { must(t, w.Close()) }()
	if got := run(t, c, name, runtime.SessionConfig{Args: []string{"echo", "x"}, Stdin: r}); got.out != "x\n" {
		t.Errorf("%+v", got)
	}
}

const largeSize = 48 << 20 // bytes

func largeOutput(t *testing.T, c *runtime.Client, name string) {
	h := &counter{}
	r := run(t, c, name, runtime.SessionConfig{
		Args: []string{"bash", "-c", "head -c 50331648 /dev/zero"}, Stdout: h,
	})
	if r.code != 0 || h.n != largeSize {
		t.Errorf("%d bytes of %d, exit code %d", h.n, largeSize, r.code)
	}
}

// slowReader reads like a user with a pager: the command has ended and its last bytes
// are still in the pipe.
func slowReader(t *testing.T, c *runtime.Client, name string) {
	want := sha256.New()
	text := strings.Repeat("a line of text that is neither long nor short\n", 4096) // 184 KiB
	_, _ = io.WriteString(want, text)
	got := sha256.New()
	stall := &stalling{w: got, after: 16 << 10, pause: 4 * time.Second}
	r := run(t, c, name, runtime.SessionConfig{
		Args:   []string{"bash", "-c", "yes 'a line of text that is neither long nor short' | head -n 4096"},
		Stdout: stall,
	})
	if a, b := hex.EncodeToString(got.Sum(nil)), hex.EncodeToString(want.Sum(nil)); a != b || r.code != 0 {
		t.Errorf("output was lost: %d bytes of %d, exit code %d", stall.n, len(text), r.code)
	}
}

func terminal(t *testing.T, c *runtime.Client, name string) {
	r := run(t, c, name, runtime.SessionConfig{
		Args: []string{"timeout", "--foreground", "20", "bash", "-c", `while [ "$(stty size)" = "0 0" ]; do sleep 0.02; done; stty size; test -t 0 && test -t 1 && test -t 2`}, Terminal: true, Width: 101, Height: 43,
	})
	if r.code != 0 || r.out != "43 101\r\n" {
		t.Errorf("terminal: %+v", r)
	}
}

func resize(t *testing.T, c *runtime.Client, name string) {
	out := newWatched()
	in, typed := io.Pipe()
	s, err := c.Exec(ctx(t), name, runtime.SessionConfig{
		Args:     []string{"bash", "-c", `trap 'stty size' WINCH; echo ready; while ! read -t 0.05 line; do :; done; echo "got $line"`},
		Terminal: true, Width: 80, Height: 24, Stdin: in, Stdout: out,
	})
	if err != nil {
		t.Fatal(err)
	}
	out.await(t, "ready")
	must(t, s.Resize(ctx(t), 132, 50))
	out.await(t, "50 132")
	if _, err := io.WriteString(typed, "typed\r"); err != nil {
		t.Fatal(err)
	}
	out.await(t, "got typed")
	if code, err := wait(t, s); code != 0 || err != nil {
		t.Errorf("resized session: %d, %v", code, err)
	}
	must(t, typed.Close())
}

func missingCommand(t *testing.T, c *runtime.Client, name string) {
	_, err := c.Exec(ctx(t), name, runtime.SessionConfig{Args: []string{"no-such-command"}, Stdout: io.Discard, Stderr: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "no-such-command") || !strings.Contains(err.Error(), name) {
		t.Errorf("missing command: %v", err)
	}
	if errors.Is(err, runtime.ErrNotRunning) {
		t.Errorf("missing command reported as a stopped bottle: %v", err)
	}
}

// backgroundChild: a surviving child that holds the output open must not block the
// end of the session or later sessions.
func backgroundChild(t *testing.T, c *runtime.Client, name string) {
	begin := time.Now()
	r := run(t, c, name, runtime.SessionConfig{Args: []string{"bash", "-c", "sleep 300 & echo $!"}})
	if took := time.Since(begin); took > 15*time.Second || r.code != 0 {
		t.Errorf("ended after %v with %d", took, r.code)
	}
	script(t, c, name, "kill "+r.out)
	// Nor may a child that writes forever.
	r = run(t, c, name, runtime.SessionConfig{
		Args: []string{"bash", "-c", "echo $BASHPID >/tmp/yes; (echo $BASHPID >/tmp/yes; exec yes) & sleep 0.2"}, Stdout: io.Discard,
	})
	if r.code != 0 {
		t.Errorf("%+v", r)
	}
	script(t, c, name, "kill $(cat /tmp/yes) 2>/dev/null; true")
}

// orphans: PID 1 reaps orphaned processes of a session.
func orphans(t *testing.T, c *runtime.Client, name string) {
	script(t, c, name, "for i in 1 2 3 4 5; do (sleep 0.3 >/dev/null 2>&1 &); done")
	eventually(t, "all sleep processes are gone, including zombies", func() bool {
		return !strings.Contains(script(t, c, name, "cat /proc/[0-9]*/stat 2>/dev/null; true"), "(sleep)")
	})
}

func environment(t *testing.T, c *runtime.Client, name string) {
	r := run(t, c, name, runtime.SessionConfig{
		Args: []string{"bash", "-c", `echo "$GREETING $LANG $HOME $EXTRA $PWD $(id -u):$(id -g) $(hostname)"`},
		Env:  []string{"EXTRA=1"},
	})
	group := 1000
	if strings.HasSuffix(name, runtime.RuntimeRunc) {
		group = privateGID
	}
	if want := fmt.Sprintf("hello over /home/agent 1 / 1000:%d guest\n", group); r.out != want {
		t.Errorf("%q %s, want %q", r.out, r.err, want)
	}
}

func concurrent(t *testing.T, c *runtime.Client, name string) {
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			text := strings.Repeat(string(rune('a'+i)), 100_000)
			var out bytes.Buffer
			s, err := c.Exec(context.Background(), name, runtime.SessionConfig{
				Args: []string{"cat"}, Stdin: strings.NewReader(text), Stdout: &out, Stderr: io.Discard,
			})
			if err != nil {
				t.Error(err)
				return
			}
			if code, err := s.Wait(); code != 0 || err != nil || out.String() != text {
				t.Errorf("session %d: %d, %v, %d bytes", i, code, err, out.Len())
			}
		})
	}
	wg.Wait()
}

// emptyInput: a session's input may end before its shim starts to read, which happens
// occasionally when several sessions start concurrently.
func emptyInput(t *testing.T, c *runtime.Client, name string) {
	for range 5 {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				s, err := c.Exec(context.Background(), name, runtime.SessionConfig{
					Args: []string{"cat"}, Stdin: strings.NewReader(""), Stdout: io.Discard, Stderr: io.Discard,
				})
				if err != nil {
					t.Error(err)
					return
				}
				hung := time.AfterFunc(time.Minute, func() {
					t.Error("the command has not received EOF")
					must(t, s.Signal(context.Background(), syscall.SIGKILL))
				})
				defer hung.Stop()
				if code, err := s.Wait(); err != nil || code != 0 {
					t.Errorf("%d, %v", code, err)
				}
			})
		}
		wg.Wait()
	}
}

// TestExecWithoutAgent: a session needs a running agent.
func TestExecWithoutAgent(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	cfg := runtime.SessionConfig{Args: []string{"true"}, Stdout: io.Discard, Stderr: io.Discard}
	if _, err := c.Exec(ctx(t), "claude-bottle-absent", cfg); !errors.Is(err, runtime.ErrNotRunning) {
		t.Errorf("no container: %v", err)
	}
	ended := agentConfig(t, c, "claude-bottle-test-ended", runtime.RuntimeRunc)
	task := started(t, c, ended)
	must(t, syscall.Kill(task.PID(), syscall.SIGKILL))
	<-task.Exited()
	if _, err := c.Exec(ctx(t), ended.Name, cfg); !errors.Is(err, runtime.ErrNotRunning) {
		t.Errorf("stopped task: %v", err)
	}
	noSessions(t, c, ended.Name)
}

// counter counts bytes.
type counter struct{ n int }

func (c *counter) Write(p []byte) (int, error) { c.n += len(p); return len(p), nil }

// stalling pauses once, after the given number of bytes.
type stalling struct {
	w        io.Writer
	n, after int
	pause    time.Duration
	stalled  bool
}

func (s *stalling) Write(p []byte) (int, error) {
	if s.n >= s.after && !s.stalled {
		s.stalled = true
		time.Sleep(s.pause)
	}
	s.n += len(p)
	return s.w.Write(p)
}

// watched collects output and lets a test wait for text in it.
type watched struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

func newWatched() *watched { return &watched{more: make(chan struct{}, 1)} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p)
	select {
	case w.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (w *watched) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		w.mu.Lock()
		got := w.text.String()
		w.mu.Unlock()
		if strings.Contains(got, text) {
			return
		}
		select {
		case <-w.more:
		case <-deadline:
			t.Fatalf("no %q within 30 s: %q", text, got)
		}
	}
}
