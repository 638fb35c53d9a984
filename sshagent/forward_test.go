package sshagent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh/agent"

	"github.com/bot-bottle/bottle/sshagent/relay"
)

// listener returns a Listener that runs the inner end of a relay in this process.
func listener(socket string) Listener {
	return func(stdin io.Reader, stdout, _ io.Writer) (func() (int, error), error) {
		l, err := net.Listen("unix", socket)
		if err != nil {
			return nil, err
		}
		ended := make(chan error, 1)
		go func() { ended <- relay.Listen(l, stdin, stdout) }()
		return func() (int, error) { return 0, <-ended }, nil
	}
}

// TestForward uses the agent through a forwarding, which ends when it is closed.
func TestForward(t *testing.T) {
	_, private := newSigner(t)
	public, signer, err := ParsePrivate(pemOf(t, private, ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	a := New([]Key{{Public: public, Signer: signer}}, slog.New(slog.DiscardHandler), noReport)
	socket, ended := filepath.Join(t.TempDir(), "socket"), make(chan struct{})
	f, err := a.Forward(t.Context(), listener(socket), func() { close(ended) })
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := agent.NewClient(dial(t, socket)).List(); err != nil || len(keys) != 1 {
		t.Errorf("keys %v, %v", keys, err)
	}
	f.Close()
	<-f.Done()
	<-ended
}

// TestForwardFails expects a clear error, and the end of the agent, from each way in which
// a process in the sandbox can fail to start.
func TestForwardFails(t *testing.T) {
	silent := func(stdin io.Reader, _, _ io.Writer) (func() (int, error), error) {
		return func() (int, error) {
			_, err := io.Copy(io.Discard, stdin)
			return 0, err
		}, nil
	}
	for name, test := range map[string]struct {
		start Listener
		want  string
	}{
		"start": {func(io.Reader, io.Writer, io.Writer) (func() (int, error), error) {
			return nil, errors.New("no such process")
		}, "start ssh agent relay: no such process"},
		"exit": {func(_ io.Reader, _, stderr io.Writer) (func() (int, error), error) {
			return func() (int, error) {
				_, err := io.WriteString(stderr, "cannot listen\n"+strings.Repeat("x", 2*maxHead))
				return 1, err
			}, nil
		}, "start ssh agent relay: process exited: cannot listen\nx"},
		"cancelled": {silent, context.Canceled.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			if name == "cancelled" {
				cancel()
			}
			defer cancel()
			ended := make(chan struct{})
			a := New(nil, slog.New(slog.DiscardHandler), noReport)
			f, err := a.Forward(ctx, test.start, func() { close(ended) })
			if f != nil || err == nil || !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("got %v, %v, want %q", f, err, test.want)
			}
			if err != nil && len(err.Error()) > maxHead+100 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
			<-ended
		})
	}
}
