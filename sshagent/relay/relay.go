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
	"time"
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
	turn chan struct{} // holds a value while a frame is being written
	w    io.Writer
}

func newFrameWriter(w io.Writer) *frameWriter { return &frameWriter{make(chan struct{}, 1), w} }

func (f *frameWriter) send(conn uint32, data []byte) error {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
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

// connections holds the connections that occupy a slot, by number. A connection
// keeps its slot until it has ended on both sides: the peer has closed it, and the
// goroutine that serves it here has ended. While that goroutine waits for a peer
// that does not read, it still holds memory. Until the peer has closed it, data for
// the connection may arrive, which must not open a new one.
type connections struct {
	limit int

	mu   sync.Mutex
	open map[uint32]*connection
}

type connection struct {
	io.WriteCloser
	peerClosed, served bool
}

// add registers a connection. It reports false when the limit is reached.
func (c *connections) add(id uint32, w io.WriteCloser) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.limit {
		return false
	}
	if c.open == nil {
		c.open = map[uint32]*connection{}
	}
	c.open[id] = &connection{WriteCloser: w}
	return true
}

// deliver passes a frame to its connection. It reports false if there is none.
func (c *connections) deliver(id uint32, data []byte) bool {
	c.mu.Lock()
	conn := c.open[id]
	if conn != nil && len(data) == 0 {
		conn.peerClosed = true
		c.free(id)
	}
	c.mu.Unlock()
	if conn == nil {
		return false
	}
	if len(data) > 0 {
		if _, err := conn.Write(data); err == nil {
			return true
		}
	}
	_ = conn.Close() // both sides may close it
	return true
}

// served reports that the goroutine of a connection has ended.
func (c *connections) served(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.open[id]; conn != nil {
		conn.served = true
		c.free(id)
	}
}

// free frees the slot of a connection that has ended on both sides.
func (c *connections) free(id uint32) {
	if conn := c.open[id]; conn.peerClosed && conn.served {
		delete(c.open, id)
	}
}

// closeAll closes all connections, which ends their goroutines, and admits no more.
func (c *connections) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = 0
	for _, conn := range c.open {
		_ = conn.Close() // both sides may close it
	}
}

// clientTimeout is how long the inner end waits for a client to read. A client
// that does not read must not block the other connections.
const clientTimeout = 10 * time.Second

// client is a connection of the inner end.
type client struct{ net.Conn }

func (c client) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(clientTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Listen runs the inner end: it forwards the listener's connections until in ends,
// then closes the listener.
func Listen(l net.Listener, in io.Reader, out io.Writer) error {
	f, conns := newFrameWriter(out), &connections{limit: MaxConnections}
	defer conns.closeAll()
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
			c := client{conn}
			if !conns.add(id, c) {
				_ = conn.Close()
				continue
			}
			go func() {
				pump(f, id, c)
				conns.served(id)
			}()
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
		conns.deliver(id, data)
	}
}

// pump forwards the data of a connection and then its end.
func pump(f *frameWriter, id uint32, conn io.ReadCloser) {
	defer func() { _ = conn.Close() }() // both sides may close it
	buf := make([]byte, maxFrame)
	for {
		n, err := conn.Read(buf)
		if n > 0 && f.send(id, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = f.send(id, nil) // the reader of the stream reports its errors
			return
		}
	}
}

// Serve runs the outer end: it calls answer for each connection from inside until
// in ends. It calls ready once, when the socket is listening. The connection is
// closed when answer returns; the context is cancelled when Serve is about to
// return. All input is untrusted: processes in the sandbox with the same user ID
// can take the place of the inner end.
//
// Serve holds at most one frame, and for each of MaxConnections connections what
// answer holds plus one frame. It stops reading while the peer does not read.
func Serve(ctx context.Context, in io.Reader, out io.Writer, ready func(), answer func(context.Context, io.ReadWriter)) error {
	return serve(ctx, in, out, ready, answer, MaxConnections)
}

func serve(ctx context.Context, in io.Reader, out io.Writer, ready func(), answer func(context.Context, io.ReadWriter), limit int) error {
	f, conns := newFrameWriter(out), &connections{limit: limit}
	ready = sync.OnceFunc(ready)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer conns.closeAll()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for ctx.Err() == nil {
		id, data, err := receive(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case id == 0:
			ready()
			continue
		case conns.deliver(id, data) || len(data) == 0:
			continue
		}
		r, w := io.Pipe()
		if !conns.add(id, w) {
			if err := f.send(id, nil); err != nil {
				return err
			}
			continue
		}
		serving.Go(func() {
			defer conns.served(id)
			answer(ctx, stream{r, f, id})
			_ = r.Close() // makes later writes fail
			_ = f.send(id, nil)
		})
		_, _ = w.Write(data) // fails after answer has returned
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
