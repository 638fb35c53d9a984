package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// clientBytes is how much output waits for a slow client.
const clientBytes = 1 << 20

// client is one connection.
type client struct {
	h    *holder
	conn io.ReadWriteCloser
	logs bool // gets records instead of the screen
	wait bool // gets the end only

	mu     sync.Mutex
	cond   *sync.Cond
	queue  [][]byte
	bytes  int
	redraw bool // the queue was dropped; the screen is drawn again
	last   bool // nothing follows the queue
	closed bool
}

// handle serves a connection.
func (h *holder) handle(conn io.ReadWriteCloser) {
	c := &client{h: h, conn: conn}
	c.cond = sync.NewCond(&c.mu)
	defer c.close()
	var req proto.Request
	kind, data, err := proto.Read(c.conn)
	if err != nil || kind != proto.KindRequest || json.Unmarshal(data, &req) != nil {
		return
	}
	switch req.Op {
	case proto.OpRun:
		h.serveRun(conn, req)
		return
	case proto.OpClaim:
		h.serveClaim(conn)
		return
	}
	written := make(chan struct{})
	go func() { defer close(written); c.writeQueue() }()
	if c.resolve(&req) && c.begin(req) {
		h.follow(c)
		h.mu.Lock()
		delete(h.clients, c)
		h.mu.Unlock()
	}
	// What is queued is still written, unless the client is gone.
	c.finish(nil)
	<-written
}

// resolve completes a request to start the session. It returns false if that fails, which the
// client is told.
func (c *client) resolve(req *proto.Request) bool {
	e := req.Exec
	if req.Op != proto.OpStart || e == nil || len(e.Command) == 0 {
		return true
	}
	cmd, code, err := resolve(e, func(error) {})
	if err != nil {
		c.force(proto.JSON(proto.KindError, proto.Failure{Text: err.Error(), Code: code}))
		return false
	}
	req.Spec = &proto.Spec{Path: cmd.path, Args: cmd.args, Env: cmd.env, Dir: cmd.dir, Terminal: e.Terminal, Stdin: e.Stdin}
	return true
}

// begin answers a request. It returns true if the connection continues until the client
// leaves or the session ends.
func (c *client) begin(req proto.Request) bool {
	h := c.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if req.Op == proto.OpStart {
		return c.start(req)
	}
	state := h.now()
	if state.Started.IsZero() && req.Op != proto.OpState && (req.Op != proto.OpWait || !req.Follow) {
		c.force(proto.JSON(proto.KindError, proto.Failure{Text: "no session was started"}))
		return false
	}
	switch req.Op {
	case proto.OpState:
	case proto.OpSignal:
		if h.pid != 0 {
			_ = syscall.Kill(h.pid, syscall.Signal(req.Signal))
		}
	case proto.OpLogs:
		c.logs = true
		for _, frame := range h.history.since(req.Since) {
			c.force(frame)
		}
		c.force(record{at: time.Now(), kind: proto.KindStdout}.frame()) // the end of the kept output
		if req.Follow && state.Running() {
			h.clients[c] = true
			return true
		}
	case proto.OpWait:
		c.wait = true
		if state.Ended.IsZero() {
			h.clients[c] = true
			return true
		}
	case proto.OpAttach:
		c.force(proto.JSON(proto.KindStarted, state))
		h.setSize(req.Size)
		if h.screen != nil {
			c.force(proto.Frame(proto.KindStdout, h.screen.redraw()))
		}
		if state.Running() {
			h.clients[c] = true
			return true
		}
	default:
		c.fail(fmt.Errorf("unknown request %q", req.Op))
		return false
	}
	c.force(proto.JSON(proto.KindState, state))
	return false
}

// start starts the session, with h.mu held.
func (c *client) start(req proto.Request) bool {
	if req.Spec == nil {
		c.fail(errors.New("missing command"))
		return false
	}
	joins := req.Attach || req.Warm
	if joins {
		c.logs = req.Warm
		c.h.clients[c] = true // before the first output
	}
	if err := c.h.start(req.Spec, req.Size); err != nil {
		delete(c.h.clients, c)
		c.fail(fmt.Errorf("run %s: %w", req.Spec.Args[0], err))
		return false
	}
	c.h.warm = req.Warm
	c.force(proto.JSON(proto.KindStarted, c.h.now()))
	if !joins {
		c.force(proto.JSON(proto.KindState, c.h.now()))
	}
	return joins
}

// fail reports that a request has failed.
func (c *client) fail(err error) {
	c.force(proto.JSON(proto.KindError, proto.Failure{Text: err.Error(), Code: codeOf(err)}))
}

// follow handles what a client sends until it leaves.
func (h *holder) follow(c *client) {
	for {
		kind, data, err := proto.Read(c.conn)
		if err != nil || kind == proto.KindDetach {
			return
		}
		switch kind {
		case proto.KindInput:
			h.mu.Lock()
			in := h.stdin
			h.mu.Unlock()
			if in != nil {
				_, _ = in.Write(data) // the process may have ended, or closed its input
			}
		case proto.KindEOF:
			h.mu.Lock()
			closeIn := h.closeIn
			h.mu.Unlock()
			if closeIn != nil {
				closeIn()
			}
		case proto.KindResize:
			var size proto.Size
			if json.Unmarshal(data, &size) == nil {
				h.mu.Lock()
				h.setSize(size)
				h.mu.Unlock()
			}
		case proto.KindSignal:
			if len(data) == 1 {
				h.signal(syscall.Signal(data[0]))
			}
		}
	}
}

// put queues a frame. If too much waits, a terminal's client gets the screen redrawn
// instead of what it missed, and a reader of the log is disconnected.
func (c *client) put(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.wait || c.redraw:
		return
	case c.bytes+len(frame) <= clientBytes:
		c.add(frame)
	case c.logs:
		c.queue, c.bytes = nil, 0
		c.add(proto.JSON(proto.KindError, proto.Failure{Text: "the output is faster than its reader, some was dropped", Code: exitBottle}))
		c.last = true
	default:
		c.queue, c.bytes, c.redraw = nil, 0, true
	}
	c.cond.Broadcast()
}

// putWaiting queues a frame when there is room for it.
func (c *client) putWaiting(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.bytes+len(frame) > clientBytes && !c.closed {
		c.cond.Wait()
	}
	if !c.wait {
		c.add(frame)
	}
	c.cond.Broadcast()
}

// force queues a frame without a limit.
func (c *client) force(frame []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(frame)
	c.cond.Broadcast()
}

func (c *client) add(frame []byte) {
	if !c.closed && !c.last {
		c.queue, c.bytes = append(c.queue, frame), c.bytes+len(frame)
	}
}

// finish queues the state, if there is one, as the last frame.
func (c *client) finish(state any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if state != nil {
		c.add(proto.JSON(proto.KindState, state))
	}
	c.last = true
	c.cond.Broadcast()
}

func (c *client) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	_ = c.conn.Close()
	c.cond.Broadcast()
}

// writeQueue writes the queue until its end, or until the client is gone, and then closes
// the connection.
func (c *client) writeQueue() {
	defer c.close()
	for {
		frame, ok := c.next()
		if !ok {
			return
		}
		if _, err := c.conn.Write(frame); err != nil {
			return
		}
	}
}

// next waits for a frame to write.
func (c *client) next() (frame []byte, ok bool) {
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.redraw && !c.last && !c.closed {
			c.cond.Wait()
		}
		if !c.redraw {
			defer c.mu.Unlock()
			if c.closed || len(c.queue) == 0 {
				return nil, false
			}
			frame = c.queue[0]
			c.queue, c.bytes = c.queue[1:], c.bytes-len(frame)
			c.cond.Broadcast()
			return frame, true
		}
		c.mu.Unlock()
		// The holder's lock comes before the client's.
		c.h.mu.Lock()
		screen := proto.Frame(proto.KindStdout, c.h.screen.redraw())
		c.mu.Lock()
		c.redraw = false
		c.queue, c.bytes = append([][]byte{screen}, c.queue...), c.bytes+len(screen)
		c.mu.Unlock()
		c.h.mu.Unlock()
	}
}
