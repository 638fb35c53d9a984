// Package relay carries the connections of a unix socket inside a bottle over
// the standard input and output of one process inside, to whoever answers them
// outside: no socket of the host's is in the sandbox, and no way to one. Its
// inner end is part of the guest program, so that it imports little.
package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// A frame is the connection's number, a length and as many bytes; a length of 0
// closes the connection. Connections begin inside, with numbers from 1 on; 0 says
// that the socket listens.

const (
	maxFrame = 32 << 10 // bytes
	// MaxConnections is how many connections may be open at once.
	MaxConnections = 64
)

// frames writes whole frames, one at a time.
type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) send(conn uint32, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	head := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, conn), uint32(len(data)))
	_, err := f.w.Write(append(head, data...))
	return err
}

func receive(r io.Reader) (conn uint32, data []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	conn, n := binary.BigEndian.Uint32(head[:4]), binary.BigEndian.Uint32(head[4:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("a frame of %d bytes", n)
	}
	data = make([]byte, n)
	_, err = io.ReadFull(r, data)
	return conn, data, err
}

// ends are the connections that are open, by their numbers.
type ends struct {
	mu   sync.Mutex
	open map[uint32]io.WriteCloser
}

// add tells whether there is room for one more.
func (e *ends) add(conn uint32, w io.WriteCloser) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.open) >= MaxConnections {
		return false
	}
	if e.open == nil {
		e.open = map[uint32]io.WriteCloser{}
	}
	e.open[conn] = w
	return true
}

func (e *ends) get(conn uint32) io.WriteCloser {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.open[conn]
}

// drop closes an end, once.
func (e *ends) drop(conn uint32) {
	e.mu.Lock()
	w := e.open[conn]
	delete(e.open, conn)
	e.mu.Unlock()
	if w != nil {
		_ = w.Close() // both sides may close it
	}
}

func (e *ends) dropAll() {
	e.mu.Lock()
	all := e.open
	e.open = nil
	e.mu.Unlock()
	for _, w := range all {
		_ = w.Close()
	}
}

// Listen is the inner end: it serves the listener until in ends, and closes it.
func Listen(l net.Listener, in io.Reader, out io.Writer) error {
	f, conns := &frames{w: out}, &ends{}
	defer conns.dropAll()
	defer func() { _ = l.Close() }()
	if err := f.send(0, nil); err != nil {
		return err
	}
	go func() {
		for id := uint32(1); ; id++ {
			conn, err := l.Accept()
			if err != nil {
				return // closed, at the end
			}
			if !conns.add(id, conn) {
				_ = conn.Close()
				continue
			}
			go pump(f, conns, id, conn)
		}
	}()
	for {
		id, data, err := receive(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(data) == 0 {
			conns.drop(id)
		} else if w := conns.get(id); w != nil {
			if _, err := w.Write(data); err != nil {
				conns.drop(id)
			}
		}
	}
}

// pump sends what a connection says, and that it has ended.
func pump(f *frames, conns *ends, id uint32, conn io.Reader) {
	buf := make([]byte, maxFrame)
	for {
		n, err := conn.Read(buf)
		if n > 0 && f.send(id, buf[:n]) != nil {
			return
		}
		if err != nil {
			conns.drop(id)
			_ = f.send(id, nil) // the stream's own end is told by its reader
			return
		}
	}
}

// Serve is the outer end: it has each connection from inside answered, until in
// ends. Ready is called once, when the socket listens; answer returns when it is
// done with a connection. What comes from inside is the agent's: whoever has its
// user id there may write what they like in the inner end's place.
func Serve(ctx context.Context, in io.Reader, out io.Writer, ready func(), answer func(io.ReadWriter)) error {
	f, conns := &frames{w: out}, &ends{}
	ready = sync.OnceFunc(ready)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer conns.dropAll()
	for ctx.Err() == nil {
		id, data, err := receive(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch w := conns.get(id); {
		case id == 0:
			ready()
		case len(data) == 0:
			conns.drop(id)
		case w != nil:
			if _, err := w.Write(data); err != nil {
				conns.drop(id)
			}
		default:
			r, w := io.Pipe()
			if !conns.add(id, w) {
				if err := f.send(id, nil); err != nil {
					return err
				}
				continue
			}
			serving.Go(func() {
				answer(stream{r, f, id})
				_ = r.Close() // fails what still comes
				_ = f.send(id, nil)
			})
			_, _ = w.Write(data) // fails when answer has returned
		}
	}
	return ctx.Err()
}

// stream is one connection as it is answered.
type stream struct {
	io.Reader
	f  *frames
	id uint32
}

func (s stream) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n := min(len(rest), maxFrame)
		if err := s.f.send(s.id, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return len(p), nil
}
