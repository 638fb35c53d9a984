package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync"

	"k8s.io/client-go/tools/remotecommand"
	exitcode "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// Streams are what a session is connected to. With a terminal, Stderr is not used.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool
	Width, Height  uint16
}

// Session is a connection with the agent's container.
type Session struct {
	sizes  chan remotecommand.TerminalSize
	done   chan struct{}
	cancel context.CancelFunc
	err    error

	mu     sync.Mutex
	closed bool
}

// Exec runs a command in the agent's container.
func (c *Client) Exec(ctx context.Context, name string, command []string, s Streams) (*Session, error) {
	return c.start(ctx, name, "exec", agent, url.Values{"command": command}, s)
}

// ExecWork runs a command in the container of the agent's pod in which its work is
// accessible, also after its session has ended.
func (c *Client) ExecWork(ctx context.Context, name string, command []string, s Streams) (*Session, error) {
	return c.start(ctx, name, "exec", workContainer, url.Values{"command": command}, s)
}

// Attach connects with the agent's own session.
func (c *Client) Attach(ctx context.Context, a Agent, s Streams) (*Session, error) {
	s.Terminal = a.tty
	return c.start(ctx, a.Name, "attach", agent, url.Values{}, s)
}

func (c *Client) start(ctx context.Context, name, what, container string, query url.Values, s Streams) (*Session, error) {
	for key, on := range map[string]bool{"stdin": s.Stdin != nil, "stdout": true, "stderr": !s.Terminal, "tty": s.Terminal} {
		if on {
			query.Set(key, "true")
		}
	}
	u := c.stream(name, what, container, query)
	// Websockets, of the version that reports the end of standard input. Clusters older than
	// 1.30 have none, and get SPDY.
	web, err := remotecommand.NewWebSocketExecutor(c.config, "GET", u.String())
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(c.config, "POST", u)
	if err != nil {
		return nil, err
	}
	executor, err := remotecommand.NewFallbackExecutor(web, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, err
	}
	// The session outlives the start, whose context it has.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	out := &Session{sizes: make(chan remotecommand.TerminalSize, 1), done: make(chan struct{}), cancel: cancel}
	options := remotecommand.StreamOptions{Stdin: s.Stdin, Stdout: s.Stdout, Tty: s.Terminal}
	if s.Terminal {
		options.TerminalSizeQueue = out
		out.Resize(s.Width, s.Height)
	} else {
		options.Stderr = s.Stderr
	}
	go func() {
		defer close(out.done)
		out.err = executor.StreamWithContext(ctx, options)
	}()
	return out, nil
}

// Next implements remotecommand.TerminalSizeQueue.
func (s *Session) Next() *remotecommand.TerminalSize {
	select {
	case size := <-s.sizes:
		return &size
	case <-s.done:
		return nil
	}
}

// Resize tells the terminal inside its size.
func (s *Session) Resize(width, height uint16) {
	if width == 0 || height == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.sizes: // replaced by a newer one
	default:
	}
	s.sizes <- remotecommand.TerminalSize{Width: width, Height: height}
}

// Close ends the connection. Nothing ends inside.
func (s *Session) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
}

// ErrClosed is returned by Wait after Close.
var ErrClosed = errors.New("the connection was closed")

// Wait waits for the end of the connection, and returns the exit code of a command. The end
// of an attached session says nothing of its exit code.
func (s *Session) Wait() (int, error) {
	<-s.done
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return 0, ErrClosed
	}
	if code, ok := errors.AsType[exitcode.CodeExitError](s.err); ok {
		return code.Code, nil
	}
	if s.err != nil {
		return 0, fmt.Errorf("the connection with the agent's pod: %w", s.err)
	}
	return 0, nil
}
