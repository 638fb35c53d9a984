package guest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/drain"
	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// run is a session that ends with its client. Its output is not kept, and waits for a slow
// client as in a pipe.
type run struct {
	h        *holder
	conn     io.ReadWriteCloser
	terminal bool
	tty      *os.File // nil without a terminal
	ttyName  string   // of its other end
	input    *input   // nil: none
	exited   chan int // gets the exit code
	meter    drain.Meter
	outputs  sync.WaitGroup
	stopper  *stopper       // of the pipes; nil with a terminal
	piping   sync.WaitGroup // what uses the stopper
	inputs   atomic.Int64   // frames of input
	pid      int            // 0 before and after the process; guarded by h.mu
	stops    stopNotes

	sending sync.Mutex // one frame at a time
}

// serveRun serves the connection of a client from its request to its end.
func (h *holder) serveRun(conn io.ReadWriteCloser, req proto.Request) {
	h.ending.Add(1)
	defer h.ending.Done()
	r := &run{h: h, conn: conn, exited: make(chan int, 1)}
	defer r.close()
	begun := time.Now()
	code := r.start(req)
	if code < 0 {
		go r.follow()
		code = r.wait()
	}
	r.end(begun, code)
}

// wait returns the exit code when the process has ended and its output was sent.
func (r *run) wait() int {
	code := <-r.exited
	done := make(chan struct{})
	go func() { r.outputs.Wait(); close(done) }()
	r.meter.Drain(done)
	return code
}

// end sends the last frame.
func (r *run) end(begun time.Time, code int) {
	r.send(proto.JSON(proto.KindState, proto.State{Started: begun, Ended: time.Now(), Code: code, Terminal: r.terminal}))
}

// running is start's result if there is no exit code yet.
const running = -1

// start starts the process. If that fails, the client gets the reason as output of the
// session, and start returns the exit code.
func (r *run) start(req proto.Request) int {
	r.send(proto.JSON(proto.KindStarted, proto.State{Started: time.Now()}))
	e := req.Exec
	if e == nil || len(e.Command) == 0 {
		r.note(errors.New("missing command"))
		return exitBottle
	}
	r.terminal = e.Terminal
	c, code, err := resolve(e, r.note)
	if err == nil {
		if err = r.fork(c, req.Size, e.Stdin); err == nil {
			return running
		}
		err, code = fmt.Errorf("run %s: %w", c.args[0], err), codeOf(err)
	}
	r.note(err)
	return code
}

// command is what an Exec asks for.
type command struct {
	path      string
	args, env []string
	dir       string
}

// resolve finds the command of an Exec, with its environment and directory. note is called
// with errors in spite of which the session starts. After another one, code is the exit code.
func resolve(e *proto.Exec, note func(error)) (c command, code int, err error) {
	env := newEnviron(os.Environ())
	for _, file := range e.EnvFiles {
		if err := env.load(file); err != nil {
			return c, exitBottle, err
		}
	}
	env = newEnviron(append(env.list(), texts(e.Env)...))
	if c.dir, err = sessionDir(string(e.Dir), e.Must); err != nil {
		if e.Must {
			return c, exitNotExecutable, err
		}
		note(err)
	}
	if err := prepareEnv(env); err != nil {
		note(err)
	}
	c.args, c.env = texts(e.Command), env.list()
	if c.path, err = lookCommand(env, c.dir, c.args[0]); err != nil {
		return c, codeOf(err), fmt.Errorf("run %s: %w", c.args[0], err)
	}
	return c, 0, nil
}

func texts(list [][]byte) []string {
	out := make([]string, len(list))
	for i, b := range list {
		out[i] = string(b)
	}
	return out
}

// sessionDir returns the directory that a session starts in. If it must not be another, the
// error is that of a change to it; otherwise it is created, and after an error the session
// starts anyway.
func sessionDir(dir string, must bool) (string, error) {
	if dir == "" {
		return "/", nil
	}
	err := enterable(dir)
	if errors.Is(err, os.ErrNotExist) && !must && os.MkdirAll(dir, 0o755) == nil {
		err = enterable(dir)
	}
	if err != nil {
		return "/", fmt.Errorf("change to directory %s: %w", dir, err)
	}
	return dir, nil
}

// enterable returns the error that chdir(2) would return: this process stays where it is.
func enterable(dir string) error {
	fi, err := os.Stat(dir)
	switch perr := (*os.PathError)(nil); {
	case errors.As(err, &perr):
		return perr.Err
	case err != nil:
		return err
	case !fi.IsDir():
		return syscall.ENOTDIR
	}
	return unix.Access(dir, unix.X_OK)
}

// fork starts the process with a terminal or pipes, and their readers.
func (r *run) fork(c command, size proto.Size, stdin bool) (err error) {
	var child []*os.File
	defer func() {
		for _, f := range child {
			_ = f.Close() // the process has its own
		}
	}()
	var own []io.Closer // this side of the pipes
	defer func() {
		if err != nil {
			for _, f := range own {
				_ = f.Close() // nothing was written
			}
		}
	}()
	var outputs []func()
	output := func(kind proto.Kind, f io.ReadCloser) {
		own = append(own, f)
		outputs = append(outputs, func() { r.copyOutput(kind, f) })
	}
	files := make([]uintptr, 3)
	if r.terminal {
		master, slave, err := pty.Open()
		if err != nil {
			return fmt.Errorf("open a terminal: %w", err)
		}
		child = append(child, slave)
		r.tty, r.ttyName = master, slave.Name()
		r.resize(size)
		r.input = newInput(master, func() {}, r.taken)
		output(proto.KindStdout, master)
		for i := range files {
			files[i] = slave.Fd()
		}
	} else {
		if r.stopper, err = newStopper(); err != nil {
			return err
		}
		in, err := os.Open(os.DevNull)
		if stdin {
			var w *os.File
			if in, w, err = blockingPipe(); err == nil {
				own = append(own, w)
				err = r.pipeInput(w)
			}
		}
		if in != nil {
			child = append(child, in)
		}
		if err != nil {
			return err
		}
		files[0] = in.Fd()
		for i, kind := range []proto.Kind{proto.KindStdout, proto.KindStderr} {
			f, w, err := blockingPipe()
			if err != nil {
				return err
			}
			child = append(child, w)
			files[i+1] = w.Fd()
			output(kind, &outputPipe{File: f, stopper: r.stopper, paced: r.outputOnly()})
		}
	}
	r.h.mu.Lock()
	// Reaping needs the lock too: the process is known when its end is noticed.
	r.pid, err = syscall.ForkExec(c.path, c.args, &syscall.ProcAttr{
		Dir: c.dir, Env: c.env, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: r.terminal, Ctty: 0},
	})
	if err == nil {
		r.h.runs[r.pid] = r
	} else {
		r.pid = 0
	}
	r.h.mu.Unlock()
	if err != nil {
		return err
	}
	for _, copyOutput := range outputs {
		r.outputs.Add(1)
		r.piping.Go(func() {
			defer r.outputs.Done()
			copyOutput()
		})
	}
	if r.input != nil {
		r.piping.Go(r.input.run)
	}
	return nil
}

// pipeInput makes a pipe the process's input.
func (r *run) pipeInput(w *os.File) error {
	in, err := newInputPipe(w, r.stopper)
	r.input = newInput(in, func() { _ = w.Close() }, r.taken)
	r.input.try = in.try
	return err
}

// outputOnly returns a function that reports whether there was no input since its last call:
// what answers input must not be delayed.
func (r *run) outputOnly() func() bool {
	var last int64
	return func() bool {
		now := r.inputs.Load()
		same := now == last
		last = now
		return same
	}
}

// child handles a change of the process's state, with h.mu held.
func (r *run) child(status syscall.WaitStatus) {
	switch {
	case status.Stopped():
		// Without a terminal, whoever has stopped it can resume it.
		if r.terminal {
			go r.stops.resume(r.pid, r.writeTerminal)
		}
	case status.Exited() || status.Signaled():
		delete(r.h.runs, r.pid)
		r.pid = 0
		r.exited <- exitCode(status)
	}
}

// writeTerminal writes to the terminal as the process does, after what that has written. It
// does not wait for a terminal that takes nothing more.
func (r *run) writeTerminal(p []byte) (int, error) {
	fd, err := unix.Open(r.ttyName, unix.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }() // the process has it open, too
	return unix.Write(fd, p)
}

// copyOutput follows an output until nobody has it open any more.
func (r *run) copyOutput(kind proto.Kind, f io.ReadCloser) {
	defer func() {
		if !r.terminal { // whose input it is, too
			_ = f.Close()
		}
	}()
	buf := make([]byte, proto.Header+proto.Chunk)
	for {
		n, err := f.Read(buf[proto.Header:])
		if n > 0 {
			r.sendOutput(proto.Fill(buf[:proto.Header+n], kind))
		}
		if err != nil { // EIO from a terminal that no process has open
			return
		}
		if n == len(buf)-proto.Header && n < proto.MaxOutput {
			buf = make([]byte, proto.Header+2*n)
		}
	}
}

func (r *run) output(kind proto.Kind, data []byte) { r.sendOutput(proto.Frame(kind, data)) }

func (r *run) sendOutput(frame []byte) {
	r.meter.Begin()
	r.send(frame)
	r.meter.End(len(frame) - proto.Header)
}

// send writes a frame. An error means that the client has gone, which follow notices.
func (r *run) send(frame []byte) {
	r.sending.Lock()
	defer r.sending.Unlock()
	_, _ = r.conn.Write(frame)
}

// note shows an error as output of the session.
func (r *run) note(err error) {
	if r.terminal {
		r.send(proto.Frame(proto.KindStdout, fmt.Appendf(nil, "bottle: %v\r\n", err)))
		return
	}
	r.send(proto.Frame(proto.KindStderr, fmt.Appendf(nil, "bottle: %v\n", err)))
}

// taken confirms input.
func (r *run) taken(n int) {
	r.send(proto.Frame(proto.KindTaken, binary.BigEndian.AppendUint32(nil, uint32(n))))
}

// follow handles what the client sends until it leaves or the session ends.
func (r *run) follow() {
	frames := proto.NewReader(r.conn, proto.Window/2)
	for {
		kind, data, err := frames.Read()
		if err != nil {
			r.hangUp()
			return
		}
		switch kind {
		case proto.KindInput:
			r.inputs.Add(1)
			if r.input != nil && !r.input.add(data) {
				r.hangUp() // more than the client may send
				return
			}
		case proto.KindEOF:
			if r.input != nil {
				r.input.end()
			}
		case proto.KindResize:
			var size proto.Size
			if json.Unmarshal(data, &size) == nil {
				r.resize(size)
			}
		case proto.KindSignal:
			if len(data) == 1 {
				r.signal(1, syscall.Signal(data[0]))
			}
		}
	}
}

// hangUp ends the session of a client that has gone, as the end of a terminal's line does:
// the process group gets SIGHUP, and nobody reads its output.
func (r *run) hangUp() {
	r.signal(-1, syscall.SIGHUP)
	r.signal(-1, syscall.SIGCONT)
	r.closeFiles()
	_ = r.conn.Close()
}

// signal sends a signal to the process, or with -1 to its group.
func (r *run) signal(sign int, sig syscall.Signal) {
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	if r.pid != 0 {
		_ = syscall.Kill(sign*r.pid, sig) // it may have ended
	}
}

func (r *run) resize(size proto.Size) {
	if r.tty == nil || size.Width == 0 || size.Height == 0 {
		return
	}
	size = bounded(size)
	_ = pty.Setsize(r.tty, &pty.Winsize{Cols: size.Width, Rows: size.Height}) // fails after the end
}

func (r *run) close() {
	_ = r.conn.Close() // follow then ends
	r.closeFiles()
	if r.stopper != nil {
		r.piping.Wait()
		r.stopper.release()
	}
}

// closeFiles ends what reads the output and writes the input, which closes the pipes.
func (r *run) closeFiles() {
	if r.tty != nil {
		_ = r.tty.Close() // a second time after hangUp
	}
	if r.input != nil {
		r.input.stop()
	}
	if r.stopper != nil {
		r.stopper.stop()
	}
}

// input passes on the input of a process that may not read it.
type input struct {
	w     io.Writer
	close func()
	taken func(n int)
	try   func(p []byte) int // writes what can be written at once; nil: nothing

	mu      sync.Mutex
	cond    *sync.Cond
	queue   []byte
	writing bool // what was in the queue
	written int  // by try, and not confirmed yet
	ended   bool // nothing follows the queue
}

func newInput(w io.Writer, closeInput func(), taken func(int)) *input {
	i := &input{w: w, close: closeInput, taken: taken}
	i.cond = sync.NewCond(&i.mu)
	return i
}

// add queues data. It reports false if that is more than a client may send.
func (i *input) add(data []byte) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.ended {
		return true
	}
	if i.try != nil && len(i.queue) == 0 && !i.writing {
		n := i.try(data) // without waking run
		i.written += n
		data = data[n:]
	}
	i.queue = append(i.queue, data...)
	if i.due() {
		i.cond.Signal()
	}
	return len(i.queue) <= proto.Window
}

// due reports whether run has something to do: to write, to confirm so much that the client
// does not have to wait for it, or to end.
func (i *input) due() bool {
	return len(i.queue) > 0 || i.written >= proto.Window/4 || i.ended
}

// end closes the process's input after what is queued.
func (i *input) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	i.cond.Signal()
}

// stop discards what is queued.
func (i *input) stop() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.queue, i.ended = nil, true
	i.cond.Signal()
}

// run writes to the process. After an error, because it does not read any more, it discards
// what comes.
func (i *input) run() {
	defer i.close()
	for {
		data, tried := i.next()
		if len(data)+tried == 0 {
			return
		}
		if len(data) > 0 {
			_, _ = i.w.Write(data)
		}
		i.taken(tried + len(data))
	}
}

// next waits for what is to be written, and for what was written and is to be confirmed. Both
// are empty at the end.
func (i *input) next() (data []byte, tried int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.writing = false
	for !i.due() {
		i.cond.Wait()
	}
	data, tried = i.queue, i.written
	i.queue, i.written, i.writing = nil, 0, len(i.queue) > 0
	return data, tried
}
