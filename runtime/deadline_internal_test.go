package runtime

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestNoAnswer: calls of a containerd that has accepted the connection and hangs end at
// their deadline and say so. Afterwards the same client works.
func TestNoAnswer(t *testing.T) {
	leakcheck.Check(t)
	dir := t.TempDir()
	c, err := Connect(t.Context(), Config{
		Address: os.Getenv("CONTAINERD_ADDRESS"), Namespace: os.Getenv("CONTAINERD_NAMESPACE"), RunDir: dir, StateDir: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	calls := map[string]func(context.Context) error{
		"list":      func(ctx context.Context) error { _, err := c.List(ctx); return err },
		"names":     func(ctx context.Context) error { _, err := c.IDs(ctx); return err },
		"snapshots": func(ctx context.Context) error { _, err := c.Snapshots(ctx); return err }, // a stream
		"strays":    func(ctx context.Context) error { _, err := c.Strays(ctx); return err },
		"remove":    func(ctx context.Context) error { return c.Remove(ctx, "claude-bottle-none") },
		"rootfs": func(ctx context.Context) error {
			_, err := c.PrepareRootFS(ctx, "claude-bottle-none", "docker.io/library/claude-bottle:latest", nil)
			return err
		},
		"wait": func(ctx context.Context) error { return c.WaitTask(ctx, "claude-bottle-none") },
	}
	defer func(d time.Duration) { callTimeout = d }(callTimeout)
	callTimeout = 200 * time.Millisecond
	resume := labtest.FreezeContainerd(t)
	for name, call := range calls {
		if err := call(t.Context()); !NoAnswer(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A deadline of the caller's is reported in the same way, and the caller's leaving is not.
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.List(ctx); !NoAnswer(err) {
		t.Errorf("deadline of the caller: %v", err)
	}
	gone, leave := context.WithCancel(t.Context())
	leave()
	if _, err := c.List(gone); err == nil || NoAnswer(err) {
		t.Errorf("cancelled: %v", err)
	}
	resume()
	callTimeout = time.Minute
	for _, name := range []string{"list", "names", "snapshots", "strays", "remove", "wait"} {
		if err := calls[name](t.Context()); err != nil {
			t.Errorf("%s of a containerd that answers again: %v", name, err)
		}
	}
}

// TestWriteFails: a connection that cannot be written to is closed, so that its reader
// does not wait.
func TestWriteFails(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	c := &connection{near}
	if err := near.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
}
