package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
)

func frame(conn uint32, data []byte) []byte {
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, conn), uint32(len(data)))
	return append(head, data...)
}

// openAndClose sends count connections, each with size bytes and its end, until the
// pipe is closed.
func openAndClose(to *io.PipeWriter, count, size int) {
	part := make([]byte, maxFrame)
	for id := uint32(1); id <= uint32(count); id++ {
		for left := size; left > 0; left -= maxFrame {
			if _, err := to.Write(frame(id, part[:min(left, maxFrame)])); err != nil {
				return
			}
		}
		if _, err := to.Write(frame(id, nil)); err != nil {
			return
		}
	}
	_ = to.Close()
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestServeMemory sends 1,000 connections of 250 KB, closes each and never reads an
// answer. The control has no limit on the connections that wait for the reader.
func TestServeMemory(t *testing.T) {
	const count, size = 1000, 250_000
	for name, c := range map[string]struct {
		limit int
		holds func(bytes uint64) bool
	}{
		"limit":   {MaxConnections, func(bytes uint64) bool { return bytes < MaxConnections*(size+4*maxFrame) }},
		"control": {count, func(bytes uint64) bool { return bytes > count*size }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in, toIn := io.Pipe()
				fromOut, out := io.Pipe()
				before := heap()
				done := make(chan struct{})
				go openAndClose(toIn, count, size)
				go func() {
					defer close(done)
					_ = serve(t.Context(), in, out, func() {}, func(_ context.Context, conn io.ReadWriter) {
						request := make([]byte, size)
						if _, err := io.ReadFull(conn, request); err != nil {
							t.Errorf("read request: %v", err)
						}
						_, _ = conn.Write(request[:1])
						runtime.KeepAlive(request)
					}, c.limit)
				}()
				synctest.Wait() // until everything waits for the reader
				after := heap()
				if held := after - min(before, after); !c.holds(held) {
					t.Errorf("%d connections hold %d bytes", c.limit, held)
				}
				_, _ = fromOut.Close(), in.Close()
				<-done
			})
		})
	}
}

// TestServeSlots checks that a connection frees its slot once it has been answered
// and closed, and not before.
func TestServeSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, toIn := io.Pipe()
		fromOut, out := io.Pipe()
		answers := make(chan struct{})
		done := make(chan error)
		go func() {
			done <- serve(t.Context(), in, out, func() {}, func(_ context.Context, conn io.ReadWriter) {
				if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
					t.Errorf("read request: %v", err)
				}
				<-answers
			}, 1)
		}()
		send := func(conn uint32, data string) {
			if _, err := toIn.Write(frame(conn, []byte(data))); err != nil {
				t.Error(err)
			}
		}
		closed := func(want uint32) {
			t.Helper()
			if conn, data, err := receive(fromOut); conn != want || len(data) > 0 || err != nil {
				t.Fatalf("received connection %d, %q, %v; want the end of %d", conn, data, err, want)
			}
		}
		go send(1, "a")
		synctest.Wait()
		go func() { send(1, ""); send(2, "b") }()
		closed(2) // 1 is closed, but not answered
		answers <- struct{}{}
		closed(1)
		go send(2, "")
		synctest.Wait()
		go send(3, "c")
		answers <- struct{}{}
		closed(3)
		// 3 is answered, but not closed: its data is still on the way.
		go func() { send(3, "d"); send(4, "e") }()
		closed(4)
		_ = toIn.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestListenSlots checks that clients cannot make the inner end start more
// goroutines than it has slots, even if the outer end closes connections and does
// not read.
func TestListenSlots(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "socket"))
	if err != nil {
		t.Fatal(err)
	}
	in, toIn := io.Pipe()
	fromOut, out := io.Pipe()
	done := make(chan error)
	go func() { done <- Listen(l, in, out) }()
	if conn, _, err := receive(fromOut); conn != 0 || err != nil {
		t.Fatalf("received connection %d, %v; want the ready frame", conn, err)
	}
	before := runtime.NumGoroutine()
	dial := func() net.Conn {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	for id := range uint32(2 * MaxConnections) {
		conn := dial()
		if id >= MaxConnections {
			// Over the limit: closed without being read.
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Fatalf("connection %d: %v, want its end", id+1, err)
			}
			continue
		}
		if _, err := conn.Write([]byte("request")); err != nil {
			t.Fatal(err)
		}
		// The outer end closes it while its goroutine waits to send the request.
		if _, err := toIn.Write(frame(id+1, nil)); err != nil {
			t.Fatal(err)
		}
	}
	const accept = 1 // may not have been started before
	if got := runtime.NumGoroutine() - before; got > MaxConnections+accept {
		t.Errorf("%d goroutines, want at most %d", got, MaxConnections+accept)
	}
	_, _ = toIn.Close(), fromOut.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
