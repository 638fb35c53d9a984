// Package relay multiplexes the connections of a unix socket inside a bottle over
// the standard input and output of one process in the sandbox. No host socket is
// mounted into or reachable from the sandbox. The inner end is part of the guest
// program, so the package has few imports.
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

// A frame consists of a connection number, a length and that many bytes. Length 0
// closes the connection. Connections are opened by the inner end, numbered from 1.
// A frame for connection 0 reports that the socket is listening.

const (
	maxFrame = 32 << 10 // bytes of data
	// MaxConnections is the maximum number of open connections.
	MaxConnections = 64
)

// frameWriter writes complete frames from several goroutines.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frameWriter) send(conn uint32, data []byte) error {
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
		return 0, nil, fmt.Errorf("invalid frame length: %d bytes (max %d)", n, maxFrame)
	}
	data = make([]byte, n)
	_, err = io.ReadFull(r, data)
	return conn, data, err
}

// connections holds the open connections by number.
type connections struct {
	mu   sync.Mutex
	open map[uint32]io.WriteCloser
}

// add registers a connection. It reports false when the limit is reached.
func (c *connections) add(conn uint32, w io.WriteCloser) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= MaxConnections {
		return false
	}
	if c.open == nil {
		c.open = map[uint32]io.WriteCloser{}
	}
	c.open[conn] = w
	return true
}

func (c *connections) get(conn uint32) io.WriteCloser {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open[conn]
}

// drop closes and removes a connection.
func (c *connections) drop(conn uint32) {
	c.mu.Lock()
	w := c.open[conn]
	delete(c.open, conn)
	c.mu.Unlock()
	if w != nil {
		_ = w.Close() // both sides may close it
	}
}

func (c *connections) dropAll() {
	c.mu.Lock()
	all := c.open
	c.open = nil
	c.mu.Unlock()
	for _, w := range all {
		_ = w.Close()
	}
}

// Listen runs the inner end: it forwards the listener's connections until in ends,
// then closes the listener.
func Listen(l net.Listener, in io.Reader, out io.Writer) error {
	f, conns := &frameWriter{w: out}, &connections{}
	defer conns.dropAll()
	defer func() { _ = l.Close() }()
	if err := f.send(0, nil); err != nil {
		return err
	}
	go func() {
		for id := uint32(1); ; id++ {
			conn, err := l.Accept()
			if err != nil {
				return // the listener was closed
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

// pump forwards the data of a connection and then its end.
func pump(f *frameWriter, conns *connections, id uint32, conn io.Reader) {
	buf := make([]byte, maxFrame)
	for {
		n, err := conn.Read(buf)
		if n > 0 && f.send(id, buf[:n]) != nil {
			return
		}
		if err != nil {
			conns.drop(id)
			_ = f.send(id, nil) // the reader of the stream reports its errors
			return
		}
	}
}

// Serve runs the outer end: it calls answer for each connection from inside until
// in ends. It calls ready once, when the socket is listening. The connection is
// closed when answer returns. All input is untrusted: processes in the sandbox with
// the same user ID can take the place of the inner end.
func Serve(ctx context.Context, in io.Reader, out io.Writer, ready func(), answer func(io.ReadWriter)) error {
	f, conns := &frameWriter{w: out}, &connections{}
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
				_ = r.Close() // makes later writes fail
				_ = f.send(id, nil)
			})
			_, _ = w.Write(data) // fails after answer has returned
		}
	}
	return ctx.Err()
}

// stream is one connection as passed to answer.
type stream struct {
	io.Reader
	f  *frameWriter
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
