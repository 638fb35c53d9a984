package runtime_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// conversation is a session that repeats lines and exits with the code in a line.
type conversation struct {
	*runtime.Session
	keyboard *io.PipeWriter
	out      *watched
}

func converse(t *testing.T, c *runtime.Client, name string) conversation {
	t.Helper()
	in, keyboard := io.Pipe()
	out := newWatched()
	s, err := c.Exec(ctx(t), name, runtime.SessionConfig{
		Args:  []string{"bash", "-c", `while read -r word line; do echo "$word $line"; [ "$word" != exit ] || exit "$line"; done`},
		Stdin: in, Stdout: out, Stderr: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	return conversation{s, keyboard, out}
}

func (c conversation) say(t *testing.T, line string) {
	t.Helper()
	_, err := io.WriteString(c.keyboard, line+"\n")
	must(t, err)
	c.out.await(t, line)
}

// TestAgentSurvivesContainerd: containerd is killed or stopped, a session ends meanwhile,
// and containerd starts again. The agent and its other session live, no output is lost,
// and the exit codes of both arrive.
func TestAgentSurvivesContainerd(t *testing.T) {
	for _, verb := range []string{"kill", "stop"} {
		t.Run(verb, func(t *testing.T) {
			forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
				started(t, c, cfg)
				if err := c.CheckShim(); err != nil && cfg.Runtime == runtime.RuntimeRunsc {
					t.Fatal(err)
				}
				ends, lives := converse(t, c, cfg.Name), converse(t, c, cfg.Name)
				ends.say(t, "before")
				lives.say(t, "before")
				containerdService(t, verb)
				ends.say(t, "exit 7")
				// A child of the agent ends too.
				lives.say(t, "meanwhile")
				waitGone(t, ends)
				containerdService(t, "start")
				start := time.Now()
				if code, err := wait(t, ends.Session); code != 7 || err != nil {
					t.Errorf("the session that ended meanwhile: %d, %v", code, err)
				}
				t.Logf("its exit code came %s after the restart", time.Since(start).Round(time.Millisecond))
				lives.say(t, "after")
				if got := script(t, c, cfg.Name, "echo here"); got != "here" {
					t.Errorf("another session wrote %q", got)
				}
				lives.say(t, "exit 3")
				if code, err := wait(t, lives.Session); code != 3 || err != nil {
					t.Errorf("the other session: %d, %v", code, err)
				}
			})
		})
	}
}

// TestEndOfInputSurvives: the input of a session ends while containerd is dead. The
// process sees that when containerd is back.
func TestEndOfInputSurvives(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		started(t, c, cfg)
		s := converse(t, c, cfg.Name)
		s.say(t, "before")
		containerdService(t, "kill")
		must(t, s.keyboard.Close())
		time.Sleep(time.Second) // the end is passed on meanwhile; no event shows it
		containerdService(t, "start")
		if code, err := wait(t, s.Session); code != 0 || err != nil {
			t.Errorf("exit %d, %v", code, err)
		}
	})
}

// waitGone waits until the shim must have noticed the end of a session: it has then
// panicked if it cannot send the event. There is no event to wait for.
func waitGone(t *testing.T, c conversation) {
	t.Helper()
	_ = c.keyboard.Close() // never fails
	time.Sleep(2 * time.Second)
}

// TestStockShimLosesAgent is the control: with gVisor's shim itself the agent is lost.
func TestStockShimLosesAgent(t *testing.T) {
	leakcheck.Check(t)
	c := connectWith(t, "")
	cfg := agentConfig(t, c, "claude-bottle-test-stock", runtime.RuntimeRunsc)
	started(t, c, cfg)
	if c.CheckShim() == nil {
		t.Error("no warning")
	}
	ends := converse(t, c, cfg.Name)
	ends.say(t, "before")
	containerdService(t, "kill")
	ends.say(t, "exit 7")
	waitGone(t, ends)
	containerdService(t, "start")
	if code, err := wait(t, ends.Session); code == 7 && err == nil {
		t.Errorf("the exit code arrived: the program in place of the shim is not necessary any more")
	}
	_, err := c.Exec(ctx(t), cfg.Name, runtime.SessionConfig{Args: []string{"true"}, Stdout: io.Discard, Stderr: io.Discard})
	if !errors.Is(err, runtime.ErrNotRunning) {
		t.Errorf("the agent lives: %v", err)
	}
}

// TestUnusableShim: where containerd cannot run the program, gVisor's own shim is used.
func TestUnusableShim(t *testing.T) {
	for _, shim := range []string{"/no/such/program", "/bin/false"} {
		t.Run(shim, func(t *testing.T) {
			leakcheck.Check(t)
			c := connectWith(t, shim)
			cfg := agentConfig(t, c, "claude-bottle-test-fallback", runtime.RuntimeRunsc)
			started(t, c, cfg)
			if got := script(t, c, cfg.Name, "echo here"); got != "here" {
				t.Errorf("the session wrote %q", got)
			}
			if c.CheckShim() == nil {
				t.Error("no warning")
			}
		})
	}
}
