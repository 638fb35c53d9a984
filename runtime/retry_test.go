package runtime_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/runtime"
)

// shimPause is longer than containerd's timeout for a task's state, which is 2 s.
const shimPause = 3 * time.Second

// pause stops the shim of a task temporarily, as happens on a loaded host.
func pause(t *testing.T, shim int) {
	t.Helper()
	must(t, syscall.Kill(shim, syscall.SIGSTOP))
	done := make(chan struct{})
	time.AfterFunc(shimPause, func() {
		defer close(done)
		must(t, syscall.Kill(shim, syscall.SIGCONT))
	})
	t.Cleanup(func() { <-done })
}

// TestSlowShim: a bottle whose shim responds slowly is listed with its actual state,
// accepts a session, and can be removed.
func TestSlowShim(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		shim := parent(t, started(t, c, cfg).PID())
		pause(t, shim)
		wantListed(t, c, cfg, "running")
		pause(t, shim)
		if got := script(t, c, cfg.Name, "echo here"); got != "here" {
			t.Errorf("the session wrote %q", got)
		}
		pause(t, shim)
		remove(t, c, cfg.Name)
		wantGone(t, c, cfg.Name)
	})
}

// containerdService stops or starts the lab's containerd.
func containerdService(t *testing.T, verb string) {
	t.Helper()
	cmd := exec.Command("../scripts/lab.d/restart-containerd.sh", verb)
	cmd.Stderr = os.Stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s containerd: %v", verb, err)
	}
}

// TestContainerdRestarts: a session continues while containerd is stopped, and its
// exit code is returned.
func TestContainerdRestarts(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		started(t, c, cfg)
		in, keyboard := io.Pipe()
		out := newWatched()
		s, err := c.Exec(ctx(t), cfg.Name, runtime.SessionConfig{
			Args: []string{"bash", "-c", "while read -r line; do echo got $line; done; exit 7"}, Stdin: in, Stdout: out, Stderr: io.Discard,
		})
		if err != nil {
			t.Fatal(err)
		}
		say := func(line string) {
			_, err := io.WriteString(keyboard, line+"\n")
			must(t, err)
			out.await(t, "got "+line)
		}
		say("before")
		containerdService(t, "stop")
		say("meanwhile")
		containerdService(t, "start")
		say("after")
		if got := script(t, c, cfg.Name, "echo here"); got != "here" {
			t.Errorf("another session wrote %q", got)
		}
		must(t, keyboard.Close())
		if code, err := wait(t, s); code != 7 || err != nil {
			t.Errorf("the session ended with %d, %v", code, err)
		}
	})
}

// TestRemoveDuringRestart: a removal started while containerd is stopped completes
// after its restart.
func TestRemoveDuringRestart(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		started(t, c, cfg)
		containerdService(t, "stop")
		removed := make(chan error, 1)
		go func() { removed <- c.Remove(ctx(t), cfg.Name) }()
		// There is no event to wait for: without containerd nothing happens.
		select {
		case err := <-removed:
			t.Errorf("removed without containerd: %v", err)
		case <-time.After(time.Second):
		}
		containerdService(t, "start")
		must(t, <-removed)
		wantGone(t, c, cfg.Name)
	})
}

// TestRemoveWithoutContainerd: a removal respects the caller's deadline.
func TestRemoveWithoutContainerd(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		started(t, c, cfg)
		containerdService(t, "stop")
		defer containerdService(t, "start")
		short, cancel := context.WithTimeout(ctx(t), time.Second)
		defer cancel()
		if err := c.Remove(short, cfg.Name); err == nil || !strings.Contains(err.Error(), cfg.Name) {
			t.Errorf("remove without containerd: %v", err)
		}
	})
}
