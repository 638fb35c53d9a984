package guest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// holder is PID 1's side of a session that outlives every client: the terminal or the
// pipes of the agent's command, its output so far, and its exit code. Nothing of it is on
// the host, so neither the end of bottle's processes nor a restart of containerd loses it.
// It also knows the sessions that end with their clients.
type holder struct {
	mu      sync.Mutex
	state   proto.State
	pid     int
	ended   chan struct{} // closed when the state is final
	outputs *sync.WaitGroup
	tty     *os.File  // nil without a terminal
	ttyName string    // of its other end
	over    *handover // of the terminal
	stdin   io.Writer // nil: none
	closeIn func()
	screen  *screen
	history history
	clients map[*client]bool
	stops   stopNotes
	runs    map[int]*run   // by the ID of their process, which was not reaped
	ending  sync.WaitGroup // of all runs
	warm    bool           // the session waits for the client that it was started for
	cold    chan struct{}  // closed when it has ended before
}

func newHolder() *holder {
	return &holder{
		ended: make(chan struct{}), outputs: &sync.WaitGroup{}, clients: map[*client]bool{}, runs: map[int]*run{}, cold: make(chan struct{}),
	}
}

// serve accepts clients until the listener is closed.
func (h *holder) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go h.handle(conn)
	}
}

// listenSession listens on the session's socket. Only the agent's user can connect.
func listenSession(socket string) (net.Listener, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

var errStarted = errors.New("the session was started before")

// start starts the session's process. The caller holds h.mu, and reap needs it too: the
// process cannot be reaped before its ID is known.
func (h *holder) start(spec *proto.Spec, size proto.Size) error {
	if !h.state.Started.IsZero() {
		return errStarted
	}
	files, closeChild, err := h.open(spec, size)
	if err != nil {
		return err
	}
	attr := &syscall.ProcAttr{
		Dir: spec.Dir, Env: spec.Env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: spec.Terminal, Ctty: 0},
	}
	pid, err := syscall.ForkExec(spec.Path, spec.Args, attr)
	closeChild()
	if err != nil {
		return err
	}
	h.pid = pid
	h.state.Started, h.state.Terminal = time.Now(), spec.Terminal
	return nil
}

// open creates the terminal or the pipes of the process, and starts to read them. The
// descriptors are the process's; closeChild closes them here.
func (h *holder) open(spec *proto.Spec, size proto.Size) (files []uintptr, closeChild func(), err error) {
	if spec.Terminal {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, nil, fmt.Errorf("open a terminal: %w", err)
		}
		h.tty, h.ttyName, h.stdin, h.closeIn, h.over = master, slave.Name(), master, func() {}, &handover{}
		h.screen = newScreen(size, h.answer)
		h.setSize(size)
		h.read(proto.KindStdout, master, h.over)
		fd := slave.Fd()
		return []uintptr{fd, fd, fd}, func() { _ = slave.Close() }, nil
	}
	var child []*os.File
	closeChild = func() {
		for _, f := range child {
			_ = f.Close() // the process has its own
		}
	}
	defer func() {
		if err != nil {
			closeChild()
		}
	}()
	in, err := os.Open(os.DevNull)
	if spec.Stdin {
		var w *os.File
		if in, w, err = os.Pipe(); err == nil {
			h.stdin, h.closeIn = w, sync.OnceFunc(func() { _ = w.Close() })
		}
	}
	if err != nil {
		return nil, nil, err
	}
	child = append(child, in)
	for _, kind := range []proto.Kind{proto.KindStdout, proto.KindStderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, nil, err
		}
		child = append(child, w)
		h.read(kind, r, nil)
	}
	return []uintptr{child[0].Fd(), child[1].Fd(), child[2].Fd()}, closeChild, nil
}

// read follows an output of the process until nobody has it open any more. That of a terminal
// may be handed over.
func (h *holder) read(kind proto.Kind, r *os.File, over *handover) {
	h.outputs.Go(func() {
		buf := make([]byte, proto.Chunk)
		for {
			n, err := r.Read(buf)
			if n > 0 {
				h.output(kind, buf[:n], over)
			}
			if err != nil { // EIO from a terminal that no process has open
				return
			}
		}
	})
}

// output records output and sends it to the clients. Without a terminal it waits for slow
// clients, as a pipe does; a terminal's slow clients get the screen redrawn later.
func (h *holder) output(kind proto.Kind, data []byte, over *handover) {
	h.mu.Lock()
	if over != nil && over.to != nil {
		to := over.to
		h.mu.Unlock()
		to.output(kind, data)
		return
	}
	waiting := h.send(kind, data)
	h.mu.Unlock()
	for _, c := range waiting {
		c.putWaiting(proto.Frame(kind, data))
	}
}

// send is output with h.mu held. It returns the clients that are to be waited for.
func (h *holder) send(kind proto.Kind, data []byte) (waiting []*client) {
	now := time.Now()
	h.history.add(now, kind, data)
	frame := proto.Frame(kind, data)
	for c := range h.clients {
		switch {
		case c.logs:
			c.put(record{now, kind, data}.frame())
		case h.screen != nil:
			c.put(frame)
		default:
			waiting = append(waiting, c)
		}
	}
	if h.screen != nil {
		h.screen.write(data)
	}
	return waiting
}

// answer passes the emulator's answer to a question of the program's, unless a client's
// own terminal answers it.
func (h *holder) answer(data []byte) {
	h.mu.Lock()
	attended, tty := h.now().Clients > 0, h.tty
	h.mu.Unlock()
	if !attended && tty != nil {
		_, _ = tty.Write(data) // fails after the end
	}
}

// setSize sets the size of the terminal, which signals SIGWINCH. The last client's wins.
func (h *holder) setSize(size proto.Size) {
	if h.tty == nil || size.Width == 0 || size.Height == 0 {
		return
	}
	size = bounded(size)
	h.screen.resize(size)
	_ = pty.Setsize(h.tty, &pty.Winsize{Cols: size.Width, Rows: size.Height}) // fails after the end
}

// child handles a change of a child's state, with h.mu held. A stopped session is resumed
// immediately: there is no shell that could do it later.
func (h *holder) child(pid int, status syscall.WaitStatus) {
	if r := h.runs[pid]; r != nil {
		r.child(status)
		return
	}
	if pid != h.pid || h.pid == 0 {
		return
	}
	if status.Stopped() {
		h.stops.resume(pid, func(note []byte) (int, error) {
			if h.screen != nil {
				h.send(proto.KindStdout, note)
			}
			return len(note), nil
		})
		return
	}
	if !status.Exited() && !status.Signaled() {
		return
	}
	h.pid = 0
	go h.finish(exitCode(status), h.outputs)
}

// drainTime bounds the wait for output after the end of the process: a process that it
// started may still have the output open.
const drainTime = 500 * time.Millisecond

// finish makes the state final and notifies the clients.
func (h *holder) finish(code int, outputs *sync.WaitGroup) {
	done := make(chan struct{})
	go func() { outputs.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainTime):
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Ended, h.state.Code = time.Now(), code
	close(h.ended)
	for c := range h.clients {
		c.finish(h.now())
	}
	if h.warm {
		go h.goCold()
	}
}

// now returns the state, with h.mu held.
func (h *holder) now() proto.State {
	s := h.state
	for c := range h.clients {
		if !c.logs && !c.wait {
			s.Clients++
		}
	}
	return s
}

func (h *holder) signal(sig syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pid != 0 {
		_ = syscall.Kill(h.pid, sig) // it may have ended
	}
}
