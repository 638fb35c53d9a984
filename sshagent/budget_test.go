package sshagent

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// TestBudget checks how fast logins and signatures are answered, in the bubble's
// time: answers take none.
func TestBudget(t *testing.T) {
	login := func(s fixture) error {
		if _, err := s.client.List(); err != nil {
			return err
		}
		if err := s.bind(s.listed, sessionID, false); err != nil {
			return err
		}
		return s.sign(s.login())
	}
	for name, c := range map[string]struct {
		do    func(fixture) error
		count int
		want  time.Duration
	}{
		"burst of logins":      {login, 100, 0},
		"logins":               {login, 200, 10 * time.Second},
		"signatures":           {func(s fixture) error { return s.sign(s.login()) }, 500, 30 * time.Second},
		"refused signatures":   {func(s fixture) error { _ = s.sign(s.unboundLogin()); return nil }, 500, 30 * time.Second},
		"bindings":             {func(s fixture) error { return s.bind(s.listed, sessionID, false) }, 1000, 6 * time.Second},
		"lists":                {func(s fixture) error { _, err := s.client.List(); return err }, 5000, 10 * time.Second},
		"unsupported requests": {func(s fixture) error { _ = s.client.RemoveAll(); return nil }, 5000, 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newFixture(t)
				if err := s.bind(s.listed, sessionID, false); err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				for range c.count {
					if err := c.do(s); err != nil {
						t.Fatal(err)
					}
				}
				if got := time.Since(start); got < c.want-time.Millisecond || got > c.want+50*time.Millisecond {
					t.Errorf("%d take %v, want %v", c.count, got, c.want)
				}
			})
		})
	}
}

// TestBudgetIsShared checks that several connections share one budget, and that
// their signatures are created one at a time.
func TestBudgetIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFixture(t)
		var now, most atomic.Int32
		private, _ := newSigner(t)
		a := New([]Key{{Public: private.PublicKey(), Hosts: []Host{{Keys: []PublicKey{s.listed.PublicKey()}}},
			Signer: signerFunc(func(context.Context) (*ssh.Signature, error) {
				most.Store(max(most.Load(), now.Add(1)))
				time.Sleep(time.Millisecond) // of the bubble's time
				now.Add(-1)
				return &ssh.Signature{Format: "ssh-ed25519"}, nil
			})}}, slog.New(slog.DiscardHandler), noReport)
		start := time.Now()
		var wg sync.WaitGroup
		for range 10 {
			c := s
			c.client, c.key = connectTo(t, a), private.PublicKey()
			wg.Go(func() {
				if err := c.bind(s.listed, sessionID, false); err != nil {
					t.Error(err)
				}
				for range 50 {
					if _, err := c.client.Sign(c.key, ssh.Marshal(c.login())); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		if got := time.Since(start); got < 30*time.Second || got > 31*time.Second {
			t.Errorf("500 signatures take %v, want 30 s", got)
		}
		if most.Load() != 1 {
			t.Errorf("%d signatures at the same time, want 1", most.Load())
		}
	})
}

// TestServeEnds checks that a request that waits for the budget or for a signature
// does not outlive the agent.
func TestServeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFixture(t)
		ctx, cancel := context.WithCancel(t.Context())
		signing := make(chan struct{})
		a := New([]Key{{Public: s.key, Hosts: []Host{{Keys: []PublicKey{s.listed.PublicKey()}}},
			Signer: signerFunc(func(ctx context.Context) (*ssh.Signature, error) {
				close(signing)
				<-ctx.Done()
				return nil, ctx.Err()
			})}}, slog.New(slog.DiscardHandler), noReport)
		in, toIn := io.Pipe()
		done := make(chan struct{})
		go func() { defer close(done); _ = a.Relay(ctx, in, io.Discard, func() {}) }()
		bind := s.bindRequest(s.listed, sessionID)
		sign := request(ssh.Marshal(struct {
			Type       byte
			Blob, Data []byte
			Flags      uint32
		}{msgSignRequest, s.key.Marshal(), ssh.Marshal(s.login()), 0}))
		for id := range uint32(2) {
			if _, err := toIn.Write(frame(id+1, append(bind, sign...))); err != nil {
				t.Fatal(err)
			}
		}
		<-signing // one signs, the other waits
		synctest.Wait()
		cancel()
		_ = toIn.Close()
		<-done
	})
}

// request prefixes a request with its length.
func request(data []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)
}

// frame is a frame of the relay.
func frame(conn uint32, data []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, conn), request(data)...)
}

func (s fixture) bindRequest(by ssh.Signer, id []byte) []byte {
	s.t.Helper()
	sig, err := by.Sign(nil, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return request(ssh.Marshal(struct {
		Type             byte
		Name             string
		HostKey, ID, Sig []byte
		Forwarding       bool
	}{msgExtension, sessionBind, by.PublicKey().Marshal(), id, ssh.Marshal(sig), false}))
}

// TestRelayMemory has 1,000 connections send a request each, close and never read
// the answer. Package relay has the control.
func TestRelayMemory(t *testing.T) {
	const most = 8 << 20
	for name, size := range map[string]int{"250 KB": 250_000, "largest": maxRequest} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in, toIn := io.Pipe()
				fromOut, out := io.Pipe()
				before := heap()
				done := make(chan struct{})
				go func() {
					defer func() { _ = toIn.Close() }()
					data := append(binary.BigEndian.AppendUint32(nil, uint32(size)), make([]byte, size)...)
					for id := uint32(1); id <= 1000; id++ {
						for rest := data; ; rest = rest[min(len(rest), 32<<10):] {
							if _, err := toIn.Write(frame(id, rest[:min(len(rest), 32<<10)])); err != nil {
								return
							}
							if len(rest) == 0 {
								break
							}
						}
					}
				}()
				go func() {
					defer close(done)
					_ = New(nil, slog.New(slog.DiscardHandler), noReport).Relay(t.Context(), in, out, func() {})
				}()
				synctest.Wait() // until everything waits for the reader
				after := heap()
				if held := after - min(before, after); held > most {
					t.Errorf("%d bytes held, want at most %d", held, most)
				}
				_, _ = fromOut.Close(), in.Close()
				<-done
			})
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
