package guest

import (
	"encoding/json"
	"io"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// A warm session was started ahead of its client, on a terminal whose screen is kept. When the
// client claims it, it becomes a session that ends with its client, as one that the client has
// started, and is not the held one any more.

// handover is where the output of a terminal goes. It is guarded by the holder's lock.
type handover struct {
	to *run // nil: the holder
}

// serveClaim gives the warm session to a client. It sees the screen, and gets what follows,
// when it has sent the size of its terminal.
func (h *holder) serveClaim(conn io.ReadWriteCloser) {
	h.ending.Add(1)
	defer h.ending.Done()
	r, begun := h.claim(conn)
	if r == nil {
		_, _ = conn.Write(proto.JSON(proto.KindError, proto.Failure{Text: "no session waits for a client"}))
		return
	}
	defer r.close()
	r.send(proto.JSON(proto.KindStarted, proto.State{Started: begun, Terminal: true}))
	if r.show() {
		go r.follow()
	} else {
		r.hangUp()
	}
	r.end(begun, r.wait())
}

// claim makes the warm session a run; nil: there is none. Its output still goes to the screen.
func (h *holder) claim(conn io.ReadWriteCloser) (*run, time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.warm || h.pid == 0 || h.tty == nil {
		return nil, time.Time{}
	}
	h.warm = false
	r := &run{
		h: h, conn: conn, terminal: true, tty: h.tty, ttyName: h.ttyName, exited: make(chan int, 1), pid: h.pid,
	}
	r.input = newInput(h.tty, func() {}, r.taken)
	go r.input.run()
	outputs := h.outputs
	r.outputs.Go(outputs.Wait)
	h.runs[h.pid] = r
	begun := h.state.Started
	h.pid, h.state = 0, proto.State{}
	return r, begun
}

// show waits for the size of the client's terminal, and sends the screen. All output that
// follows goes to the client. It returns false if the client has gone.
func (r *run) show() bool {
	size, ok := r.firstSize()
	if !ok {
		return false
	}
	// Output that comes meanwhile waits for this lock.
	r.sending.Lock()
	defer r.sending.Unlock()
	h := r.h
	h.mu.Lock()
	h.setSize(size)
	screen := h.screen.redraw()
	h.screen.close()
	h.over.to = r
	h.tty, h.ttyName, h.stdin, h.closeIn, h.screen, h.over = nil, "", nil, nil, nil, nil
	h.history = history{}
	h.mu.Unlock()
	_, _ = r.conn.Write(proto.Frame(proto.KindStdout, screen)) // follow notices that the client has gone
	return true
}

func (r *run) firstSize() (size proto.Size, ok bool) {
	kind, data, err := proto.Read(r.conn)
	ok = err == nil && kind == proto.KindResize && json.Unmarshal(data, &size) == nil
	return size, ok
}

// goCold ends PID 1, and with it the sandbox, when the warm session has ended: nobody may
// claim the bottle then. Whoever follows the session, as its starter does from the beginning, gets
// its end before.
func (h *holder) goCold() {
	for end := time.Now().Add(settleTime); time.Now().Before(end); time.Sleep(terminateInterval) {
		h.mu.Lock()
		followed := len(h.clients) > 0
		h.mu.Unlock()
		if !followed {
			break
		}
	}
	close(h.cold)
}
