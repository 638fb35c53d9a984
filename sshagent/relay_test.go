package sshagent

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/agent"

	"github.com/bot-bottle/bottle/sshagent/relay"
)

// relayed joins both ends of a relay and returns the socket; end ends it.
func relayed(t *testing.T, a *Agent) (socket string, end func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	inner, toInner := io.Pipe()
	outer, toOuter := io.Pipe()
	ready := make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		if err := relay.Listen(l, inner, toOuter); err != nil {
			t.Errorf("the inner end: %v", err)
		}
		_ = toOuter.Close()
	})
	both.Go(func() {
		if err := a.Relay(context.Background(), outer, toInner, func() { close(ready) }); err != nil {
			t.Errorf("the outer end: %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatal("the relay is not ready")
	}
	end = sync.OnceFunc(func() { _ = toInner.Close(); both.Wait() })
	t.Cleanup(end)
	return socket, end
}

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestRelay(t *testing.T) {
	key, _ := newSigner(t)
	a := New([]Key{{Public: key.PublicKey()}}, slog.New(slog.DiscardHandler))
	socket, end := relayed(t, a)
	var wg sync.WaitGroup
	for range 20 {
		conn := dial(t, socket)
		wg.Go(func() {
			client := agent.NewClient(conn)
			for range 20 {
				keys, err := client.List()
				if err != nil || len(keys) != 1 || !bytes.Equal(keys[0].Blob, key.PublicKey().Marshal()) {
					t.Errorf("keys %v, %v", keys, err)
					return
				}
			}
			_ = conn.Close()
		})
	}
	wg.Wait()
	// A request that is none ends its connection, and no other.
	good, bad := dial(t, socket), dial(t, socket)
	if _, err := bad.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if n, err := bad.Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes in answer to a request that is none", n)
	}
	if _, err := agent.NewClient(good).List(); err != nil {
		t.Errorf("another connection: %v", err)
	}
	end()
	if conn, err := net.Dial("unix", socket); err == nil {
		_ = conn.Close()
		t.Error("the socket outlives the relay")
	}
	if _, err := good.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives the relay")
	}
}

// TestRelayIsBounded opens more connections than there may be.
func TestRelayIsBounded(t *testing.T) {
	a := New(nil, slog.New(slog.DiscardHandler))
	socket, _ := relayed(t, a)
	open := make([]net.Conn, relay.MaxConnections)
	for i := range open {
		open[i] = dial(t, socket)
		if _, err := agent.NewClient(open[i]).List(); err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
	}
	if _, err := agent.NewClient(dial(t, socket)).List(); err == nil {
		t.Error("one more is served")
	}
	_ = open[0].Close()
	// The end of one makes room as soon as it was seen.
	for end := time.Now().Add(10 * time.Second); ; {
		if _, err := agent.NewClient(dial(t, socket)).List(); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no room after one has ended")
		}
	}
}

// TestRelayFrames: frames that are too long, and for connections that are not
// there.
func TestRelayFrames(t *testing.T) {
	a := New(nil, slog.New(slog.DiscardHandler))
	for name, c := range map[string]struct {
		frames string
		fails  bool
	}{
		"too long":       {"\x00\x00\x00\x01\x00\xff\xff\xff", true},
		"cut":            {"\x00\x00\x00\x01\x00\x00\x00\x05ab", true},
		"ends of nobody": {"\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00", false},
		"half a request": {"\x00\x00\x00\x07\x00\x00\x00\x02\x00\x00", false},
	} {
		err := a.Relay(t.Context(), bytes.NewReader([]byte(c.frames)), io.Discard, func() {})
		if (err != nil) != c.fails {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRelayReadyOnce: an agent that took the inner end's place says again and
// again that the socket listens. Ready closes a channel, as its one user does.
func TestRelayReadyOnce(t *testing.T) {
	ready := make(chan struct{})
	err := New(nil, slog.New(slog.DiscardHandler)).Relay(t.Context(), bytes.NewReader(make([]byte, 3*8)), io.Discard, func() { close(ready) })
	if err != nil {
		t.Error(err)
	}
	select {
	case <-ready:
	default:
		t.Error("ready was not called")
	}
}
