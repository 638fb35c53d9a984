package bottle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/sshagent"
)

// sshRelay is the running ssh agent of a bottle: a process in the sandbox that
// listens on a socket, and the agent in this process, which answers over the
// standard input and output of the sandbox process. It ends with this process.
type sshRelay struct {
	stdin io.Closer
	done  <-chan struct{} // closed when the sandbox process has exited
}

// Timeouts for starting and stopping the relay.
const (
	relayStart = 30 * time.Second
	relayEnd   = 3 * time.Second
)

// head is a writer that keeps only the beginning of its input: a process that takes
// over the relay's streams can write without limit.
type head struct {
	mu   sync.Mutex
	text []byte
}

// maxHead is how much a head keeps, in bytes.
const maxHead = 4 << 10

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, p[:min(len(p), maxHead-len(h.text))]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.text)
}

func (l *launch) startRelay(ctx context.Context) error {
	log, err := egress.OpenSSHLog(l.e.proxies.SSHLogFile(l.plan.Name))
	if err != nil {
		return fmt.Errorf("start ssh agent relay: %w", err)
	}
	inside, stdin := io.Pipe()
	stdout, outside := io.Pipe()
	var stderr head
	s, err := l.e.rt.Exec(ctx, l.plan.Name, runtime.SessionConfig{
		Args: []string{provision.GuestInit, "agent", provision.GuestSSHSocket}, Stdin: inside, Stdout: outside, Stderr: &stderr,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("start ssh agent relay: %w", err), log.Close())
	}
	done, ready := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		code, err := s.Wait()
		// The streams are not used any more and must not block the agent.
		_, _ = outside.Close(), inside.Close()
		l.e.log.Debug("ssh agent relay ended", "code", code, "error", err)
	}()
	go func() {
		agent := sshagent.New(provision.SSHKeys(l.plan.Provisions().SSH), l.e.log, func(e sshagent.Event) error {
			return logSignature(log, e)
		})
		err := agent.Relay(context.WithoutCancel(ctx), stdout, stdin, func() { close(ready) })
		l.e.log.Debug("ssh agent ended", "error", err)
		// Closing its standard input ends the sandbox process.
		_, _ = stdin.Close(), stdout.Close()
		_ = log.Close() // each line is written when it is logged
	}()
	l.relay = &sshRelay{stdin: stdin, done: done}
	select {
	case <-ready:
		return nil
	case <-done:
		return fmt.Errorf("start ssh agent relay: process exited: %s", strings.TrimSpace(stderr.String()))
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(relayStart):
		return fmt.Errorf("start ssh agent relay: no answer within %v", relayStart)
	}
}

// logSignature logs a signature that a process in the sandbox has requested. The agent
// does not give a signature that cannot be logged.
func logSignature(log *egress.SSHLog, e sshagent.Event) error {
	s := egress.Signature{Host: e.Host, HostKey: e.HostKey, User: e.User, Key: e.Key, HostBound: e.HostBound}
	switch {
	case e.Granted:
		return log.Granted(s)
	case e.Unbound:
		return log.Refused(s, egress.ScannerSSHUnbound, e.Reason)
	}
	return log.Refused(s, egress.ScannerSSH, e.Reason)
}

// close stops the relay. Removing the bottle stops it too.
func (r *sshRelay) close() {
	if r != nil {
		_ = r.stdin.Close() // already closed
	}
}

// wait waits until the relay has ended, so that it does not outlive the bottle.
func (r *sshRelay) wait() {
	if r == nil {
		return
	}
	select {
	case <-r.done:
	case <-time.After(relayEnd):
	}
}
