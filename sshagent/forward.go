package sshagent

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Forwarding is a running agent whose socket is in a sandbox: a process in the sandbox
// listens on it, and the agent in this process answers over the standard input and output
// of the sandbox process. It ends with this process.
type Forwarding struct {
	stdin io.Closer
	done  <-chan struct{} // closed when the sandbox process has exited
}

// Timeouts for starting and stopping a forwarding.
const (
	forwardStart = 30 * time.Second
	forwardEnd   = 3 * time.Second
)

// Listener starts the process that listens in the sandbox, and returns a function that
// waits until it has exited and its output was written, and returns its exit code.
type Listener func(stdin io.Reader, stdout, stderr io.Writer) (wait func() (int, error), err error)

// Forward starts a process that listens in a sandbox, and returns when its socket accepts
// connections. It calls ended when the agent does not answer any more, also after an
// error.
func (a *Agent) Forward(ctx context.Context, start Listener, ended func()) (*Forwarding, error) {
	inside, stdin := io.Pipe()
	stdout, outside := io.Pipe()
	var stderr head
	wait, err := start(inside, outside, &stderr)
	if err != nil {
		ended()
		return nil, fmt.Errorf("start ssh agent relay: %w", err)
	}
	done, ready := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		code, err := wait()
		// The streams are not used any more and must not block the agent.
		_, _ = outside.Close(), inside.Close()
		a.log.Debug("ssh agent relay ended", "code", code, "error", err)
	}()
	go func() {
		err := a.Relay(context.WithoutCancel(ctx), stdout, stdin, func() { close(ready) })
		a.log.Debug("ssh agent ended", "error", err)
		// Closing its standard input ends the sandbox process.
		_, _ = stdin.Close(), stdout.Close()
		ended()
	}()
	f := &Forwarding{stdin: stdin, done: done}
	select {
	case <-ready:
		return f, nil
	case <-done:
		err = fmt.Errorf("start ssh agent relay: process exited: %s", strings.TrimSpace(stderr.String()))
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(forwardStart):
		err = fmt.Errorf("start ssh agent relay: no answer within %v", forwardStart)
	}
	f.Close()
	return nil, err
}

// Close stops the forwarding. Ending the sandbox stops it too.
func (f *Forwarding) Close() {
	if f != nil {
		_ = f.stdin.Close() // already closed
	}
}

// Done is closed when the process in the sandbox has exited.
func (f *Forwarding) Done() <-chan struct{} { return f.done }

// Wait waits until the process in the sandbox has exited, so that it does not outlive the
// sandbox.
func (f *Forwarding) Wait() {
	if f == nil {
		return
	}
	select {
	case <-f.done:
	case <-time.After(forwardEnd):
	}
}

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
