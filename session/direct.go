package session

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// direct is a session that PID 1 has started. It ends with its client: containerd and the
// runtime do not know it.
type direct struct {
	conn net.Conn
	end  func(lost bool, code int) (killed bool, limits []*runtime.LimitError) // Beside.End
	cfg  Config
	done chan struct{} // closed when nothing more comes

	// Set before done is closed.
	state    *proto.State
	writeErr error // the first of the output

	sending sync.Mutex // one frame at a time

	mu     sync.Mutex
	cond   *sync.Cond
	window int  // how much more input may be sent
	ended  bool // input is not needed any more

	// Set by Wait.
	killed bool
	limits []*runtime.LimitError
}

// killGrace bounds the wait for the end of a session after SIGKILL.
const killGrace = 10 * time.Second

// startDirect asks PID 1 to start a session. The error wraps errNotReached if the caller may
// start it in another way.
func startDirect(ctx context.Context, rt *runtime.Client, name string, cfg Config) (*direct, error) {
	exec, err := request(rt, name, cfg)
	if err != nil {
		return nil, err
	}
	conn, beside, err := ask(ctx, rt, name, proto.Request{
		Op: proto.OpRun, Size: proto.Size{Width: cfg.Width, Height: cfg.Height}, Exec: exec,
	})
	if err != nil {
		return nil, fmt.Errorf("start session in %s: %w", name, err)
	}
	return newDirect(conn, beside.End, cfg), nil
}

// request describes the process of a session.
func request(rt *runtime.Client, name string, cfg Config) (*proto.Exec, error) {
	guest := GuestDir(rt.Dir(name))
	files, err := (&Session{}).environment(guest, nil, nil)
	if err != nil {
		return nil, err
	}
	exec := &proto.Exec{EnvFiles: files, Dir: []byte(workDir(guest)), Terminal: cfg.Terminal, Stdin: cfg.Stdin != nil}
	if cfg.Dir != "" {
		exec.Dir, exec.Must = []byte(cfg.Dir), true
	}
	for _, arg := range cfg.Command {
		exec.Command = append(exec.Command, []byte(arg))
	}
	for _, kv := range terminalEnv(cfg) {
		exec.Env = append(exec.Env, []byte(kv))
	}
	for kv := range bytes.SplitSeq(provision.EnvFile(cfg.Env), []byte{0}) {
		if len(kv) > 0 {
			exec.Env = append(exec.Env, kv)
		}
	}
	return exec, nil
}

// newDirect returns the session of a connection on which it was requested.
func newDirect(conn net.Conn, end func(bool, int) (bool, []*runtime.LimitError), cfg Config) *direct {
	d := &direct{conn: conn, end: end, cfg: cfg, done: make(chan struct{}), window: proto.Window}
	d.cond = sync.NewCond(&d.mu)
	go d.read()
	if cfg.Stdin != nil {
		go d.forward()
	}
	return d
}

// read handles what PID 1 sends, until the last frame.
func (d *direct) read() {
	defer close(d.done)
	defer d.endInput()
	for {
		kind, data, err := proto.Read(d.conn)
		if err != nil {
			return
		}
		switch kind {
		case proto.KindStdout:
			d.write("stdout", d.cfg.Stdout, data)
		case proto.KindStderr:
			d.write("stderr", d.cfg.Stderr, data)
		case proto.KindTaken:
			if len(data) == 4 {
				d.taken(int(binary.BigEndian.Uint32(data)))
			}
		case proto.KindState:
			state := &proto.State{}
			if json.Unmarshal(data, state) == nil {
				d.state = state
			}
			return
		}
	}
}

// write writes output. After the first error the process is killed, because what it goes on
// to write would be lost.
func (d *direct) write(name string, w io.Writer, data []byte) {
	if w == nil || d.writeErr != nil {
		return
	}
	_, err := w.Write(data)
	if err == nil {
		return
	}
	if perr := (*fs.PathError)(nil); errors.As(err, &perr) {
		err = perr.Err // without the path of the caller's file
	}
	d.writeErr = fmt.Errorf("write %s: %w", name, err)
	go func() { _ = d.Signal(context.Background(), syscall.SIGKILL) }() // it always ends
}

// forward sends the client's input.
func (d *direct) forward() {
	buf := make([]byte, proto.Chunk)
	for {
		n, err := d.cfg.Stdin.Read(buf)
		if n > 0 && (!d.reserve(n) || d.send(proto.Frame(proto.KindInput, buf[:n])) != nil) {
			return
		}
		if err != nil {
			_ = d.send(proto.Frame(proto.KindEOF, nil)) // the session may have ended
			return
		}
	}
}

// reserve waits until n bytes of input may be sent.
func (d *direct) reserve(n int) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.window < n && !d.ended {
		d.cond.Wait()
	}
	d.window -= n
	return !d.ended
}

func (d *direct) taken(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.window = min(d.window+n, proto.Window)
	d.cond.Broadcast()
}

func (d *direct) endInput() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = true
	d.cond.Broadcast()
}

func (d *direct) send(frame []byte) error {
	d.sending.Lock()
	defer d.sending.Unlock()
	_, err := d.conn.Write(frame)
	return err
}

// tell sends a frame, and returns when it was sent or the context ends.
func (d *direct) tell(ctx context.Context, frame []byte) error {
	sent := make(chan error, 1)
	go func() { sent <- d.send(frame) }()
	select {
	case err := <-sent:
		if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.EPIPE) {
			return nil // the session has ended
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Signal sends sig to the process. After SIGKILL the session ends even if what is in the
// sandbox does not answer.
func (d *direct) Signal(ctx context.Context, sig syscall.Signal) error {
	if sig == syscall.SIGKILL {
		d.endAfterKill(killGrace)
	}
	return d.tell(ctx, proto.Frame(proto.KindSignal, []byte{byte(sig)}))
}

// endAfterKill ends a session that goes on for a time.
func (d *direct) endAfterKill(grace time.Duration) {
	time.AfterFunc(grace, func() { _ = d.conn.Close() }) // it always ends a read
}

// Resize sets the terminal's size, in cells.
func (d *direct) Resize(ctx context.Context, width, height uint16) error {
	return d.tell(ctx, proto.JSON(proto.KindResize, proto.Size{Width: width, Height: height}))
}

// Wait waits until the process has ended and its output has been written, and returns the
// exit code, as runtime.Session's does.
func (d *direct) Wait() (int, error) {
	<-d.done
	_ = d.conn.Close() // everything was read
	code := 0
	if d.state != nil {
		code = d.state.Code
	}
	d.killed, d.limits = d.end(d.state == nil, code)
	switch {
	case d.writeErr != nil:
		return 0, d.writeErr
	case d.killed:
		return 128 + int(syscall.SIGKILL), nil
	case d.state == nil:
		return 0, errors.New("wait for session: the connection with the sandbox was lost")
	}
	return code, nil
}

// Killed and LimitsReached are those of runtime.Session.
func (d *direct) Killed() bool { return d.killed }

// LimitsReached returns the limits that the agent's task reached during the session.
func (d *direct) LimitsReached() []*runtime.LimitError { return d.limits }
