package bottle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/sshagent"
)

// sshRelay is bottle's ssh agent at work: a process inside that listens on a
// socket, and the agent here, which answers over that process's standard input
// and output. It lasts as long as this process.
type sshRelay struct {
	stdin io.Closer
	done  <-chan struct{} // closed when the process inside has ended
}

// Times that the relay may take to begin and to end.
const (
	relayStart = 30 * time.Second
	relayEnd   = 3 * time.Second
)

func (l *launch) startRelay(ctx context.Context) error {
	inside, stdin := io.Pipe()
	stdout, outside := io.Pipe()
	var stderr bytes.Buffer
	s, err := l.e.rt.Exec(ctx, l.plan.Name, runtime.SessionConfig{
		Args: []string{guestInit, "agent", guestSSHSocket}, Stdin: inside, Stdout: outside, Stderr: &stderr,
	})
	if err != nil {
		return fmt.Errorf("start the ssh agent's relay: %w", err)
	}
	done, ready := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		code, err := s.Wait()
		_ = outside.Close()
		l.e.log.Debug("the ssh agent's relay has ended", "code", code, "error", err)
	}()
	go func() {
		agent := sshagent.New(l.plan.agentKeys(), l.e.log)
		err := agent.Relay(context.WithoutCancel(ctx), stdout, stdin, func() { close(ready) })
		l.e.log.Debug("the ssh agent has ended", "error", err)
		// The process inside ends with its standard input.
		_, _ = stdin.Close(), stdout.Close()
	}()
	l.relay = &sshRelay{stdin: stdin, done: done}
	select {
	case <-ready:
		return nil
	case <-done:
		return fmt.Errorf("start the ssh agent's relay: it ended at once: %s", strings.TrimSpace(stderr.String()))
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(relayStart):
		return errors.New("start the ssh agent's relay: it does not answer")
	}
}

// close ends the relay, which the end of the bottle would do too.
func (r *sshRelay) close() {
	if r != nil {
		_ = r.stdin.Close() // ended already
	}
}

// wait waits for a relay's end, so that nothing of it outlives the bottle.
func (r *sshRelay) wait() {
	if r == nil {
		return
	}
	select {
	case <-r.done:
	case <-time.After(relayEnd):
	}
}
