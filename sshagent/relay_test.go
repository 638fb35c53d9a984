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

// startRelay connects both ends of a relay and returns the socket. end stops it.
func startRelay(t *testing.T, a *Agent) (socket string, end func()) {
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
			t.Errorf("inner end: %v", err)
		}
		_ = toOuter.Close()
	})
	both.Go(func() {
		if err := a.Relay(context.Background(), outer, toInner, func() { close(ready) }); err != nil {
			t.Errorf("outer end: %v", err)
		}
	})
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatal("timeout waiting for the relay")
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
	a := New([]Key{{Public: key.PublicKey()}}, slog.New(slog.DiscardHandler), noReport)
	socket, end := startRelay(t, a)
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
	// A malformed request closes its connection and no other.
	good, bad := dial(t, socket), dial(t, socket)
	if _, err := bad.Write([]byte{0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if n, err := bad.Read(make([]byte, 1)); err == nil {
		t.Errorf("received %d bytes in answer to a malformed request", n)
	}
	if _, err := agent.NewClient(good).List(); err != nil {
		t.Errorf("other connection: %v", err)
	}
	end()
	if conn, err := net.Dial("unix", socket); err == nil {
		_ = conn.Close()
		t.Error("the socket accepts connections after the relay ended")
	}
	if _, err := good.Read(make([]byte, 1)); err == nil {
		t.Error("a connection is open after the relay ended")
	}
}

// TestRelayConnectionLimit opens one connection more than allowed.
func TestRelayConnectionLimit(t *testing.T) {
	a := New(nil, slog.New(slog.DiscardHandler), noReport)
	socket, _ := startRelay(t, a)
	open := make([]net.Conn, relay.MaxConnections)
	for i := range open {
		open[i] = dial(t, socket)
		if _, err := agent.NewClient(open[i]).List(); err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
	}
	if _, err := agent.NewClient(dial(t, socket)).List(); err == nil {
		t.Error("a connection over the limit is served")
	}
	_ = open[0].Close()
	// Closing one connection frees a slot once the outer end has seen it.
	for end := time.Now().Add(10 * time.Second); ; {
		if _, err := agent.NewClient(dial(t, socket)).List(); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no free slot after a connection was closed")
		}
	}
}

// TestRelayFrames sends invalid frames and frames for unknown connections.
func TestRelayFrames(t *testing.T) {
	a := New(nil, slog.New(slog.DiscardHandler), noReport)
	for name, c := range map[string]struct {
		frames string
		fails  bool
	}{
		"too long":                    {"\x00\x00\x00\x01\x00\xff\xff\xff", true},
		"truncated":                   {"\x00\x00\x00\x01\x00\x00\x00\x05ab", true},
		"close of unknown connection": {"\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x07\x00\x00\x00\x00", false},
		"partial request":             {"\x00\x00\x00\x07\x00\x00\x00\x02\x00\x00", false},
	} {
		err := a.Relay(t.Context(), bytes.NewReader([]byte(c.frames)), io.Discard, func() {})
		if (err != nil) != c.fails {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRelayReadyOnce sends the ready frame several times, as a process that takes
// the inner end's place can. The ready function closes a channel, as in startRelay,
// so a second call panics.
func TestRelayReadyOnce(t *testing.T) {
	ready := make(chan struct{})
	err := New(nil, slog.New(slog.DiscardHandler), noReport).Relay(t.Context(), bytes.NewReader(make([]byte, 3*8)), io.Discard, func() { close(ready) })
	if err != nil {
		t.Error(err)
	}
	select {
	case <-ready:
	default:
		t.Error("ready was not called")
	}
}
