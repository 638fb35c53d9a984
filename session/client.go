package session

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// Client is a client of a held session. The caller must call Wait.
type Client struct {
	in      io.WriteCloser // to PID 1
	cut     func()         // ends the connection, whatever is in the sandbox
	cfg     Config
	started chan struct{} // closed when PID 1 has confirmed that the session runs
	done    chan struct{} // closed when PID 1 sends no more
	exited  chan struct{} // closed when the connection has ended

	// Set before exited is closed. Of an exec that connects this client with PID 1, code, err
	// and stderr are those of its process.
	killed bool
	limits []*runtime.LimitError
	code   int
	err    error
	stderr *head

	// Set before done is closed.
	state    *proto.State
	failure  *proto.Failure
	terminal bool

	sending  sync.Mutex // one frame at a time
	mu       sync.Mutex
	detached bool
}

// Failure is returned if a session's command could not be run.
type Failure struct {
	Text string
	Code int // exit code, as in a shell
}

func (f *Failure) Error() string { return f.Text }

func newClient(in io.WriteCloser, cfg Config) *Client {
	return &Client{
		in: in, stderr: &head{}, cfg: cfg, terminal: cfg.Terminal,
		started: make(chan struct{}), done: make(chan struct{}), exited: make(chan struct{}),
	}
}

// momentary reports whether PID 1 answers a request at once. gVisor closes connections with
// the host when it writes a memory image, so that others are made by an exec.
func momentary(req proto.Request) bool {
	switch req.Op {
	case proto.OpState, proto.OpSignal:
		return true
	case proto.OpStart:
		return !req.Attach
	case proto.OpLogs:
		return !req.Follow
	}
	return false
}

// dial connects with PID 1 and sends a request. Frames of output are passed to frames. The
// client leaves when ctx ends. If PID 1 is not reached, or the client stays, an exec of the
// guest program with args connects them. It sends the request itself, unless it is only to
// attach.
func (m *Manager) dial(ctx context.Context, name string, req proto.Request, args func() []string, cfg Config) (*Client, error) {
	var conn *os.File
	var beside *runtime.Beside
	err := errNotReached
	if momentary(req) {
		conn, beside, err = ask(ctx, m.rt, name, req)
	}
	if errors.Is(err, errNotReached) && ctx.Err() == nil {
		if args != nil {
			return m.connect(ctx, name, args(), cfg)
		}
		c, err := m.connect(ctx, name, []string{provision.GuestInit, "attach"}, cfg)
		if err == nil {
			c.send(proto.JSON(proto.KindRequest, req))
		}
		return c, err
	}
	if err != nil {
		return nil, err
	}
	c := newClient(conn, cfg)
	c.cut = func() { _ = conn.Close() } // it always ends a read
	go func() {
		defer close(c.exited)
		defer close(c.done)
		_ = c.read(conn) // without a state the session was left or lost
		c.cut()
		lost := c.state == nil && c.failure == nil
		if c.killed, c.limits = beside.End(lost, 0); c.killed {
			c.code = 128 + int(syscall.SIGKILL)
		}
	}()
	return c, nil
}

// connect starts the guest program, which connects this process with PID 1.
func (m *Manager) connect(ctx context.Context, name string, args []string, cfg Config) (*Client, error) {
	inside, in := io.Pipe()
	out, outside := io.Pipe()
	c := newClient(in, cfg)
	rs, err := m.rt.Exec(ctx, name, runtime.SessionConfig{
		Args: args, Env: terminalEnv(cfg), Stdin: inside, Stdout: outside, Stderr: c.stderr,
	})
	if err != nil {
		return nil, err
	}
	c.cut = func() {
		ctx, cancel := context.WithTimeout(context.Background(), leaveGrace)
		defer cancel()
		_ = rs.Signal(ctx, syscall.SIGKILL) // it may have ended
	}
	go func() {
		defer close(c.exited)
		c.code, c.err = rs.Wait()
		c.killed, c.limits = rs.Killed(), rs.LimitsReached()
		_, _ = outside.Close(), inside.Close()
	}()
	go func() {
		defer close(c.done)
		err := c.read(out)
		_ = out.CloseWithError(err) // the process ends, and its output is discarded
	}()
	go c.ping()
	return c, nil
}

// send writes a frame. After the end it does nothing.
func (c *Client) send(frame []byte) {
	c.sending.Lock()
	defer c.sending.Unlock()
	_, _ = c.in.Write(frame)
}

func (c *Client) ping() {
	tick := time.NewTicker(proto.PingInterval)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
			c.send(proto.Frame(proto.KindPing, nil))
		}
	}
}

// read handles what PID 1 sends, until the last frame.
func (c *Client) read(out io.Reader) error {
	frames := c.cfg.frames
	if frames == nil {
		frames = c.show
	}
	for {
		kind, data, err := proto.Read(out)
		if err != nil {
			return err
		}
		switch kind {
		case proto.KindStarted:
			var state proto.State
			if err := json.Unmarshal(data, &state); err != nil {
				return err
			}
			c.begin(state)
		case proto.KindError:
			c.failure = &proto.Failure{}
			return json.Unmarshal(data, c.failure)
		case proto.KindState:
			c.state = &proto.State{}
			return json.Unmarshal(data, c.state)
		default:
			if err := frames(kind, data); err != nil {
				return err
			}
		}
	}
}

// begin forwards the input once the session runs: an earlier input might be lost.
func (c *Client) begin(state proto.State) {
	select {
	case <-c.started:
		return
	default:
	}
	c.terminal = state.Terminal
	close(c.started)
	if c.cfg.Stdin != nil {
		go c.forward()
	}
}

// show writes output to the client's streams.
func (c *Client) show(kind proto.Kind, data []byte) error {
	out := c.cfg.Stdout
	switch kind {
	case proto.KindStdout:
	case proto.KindStderr:
		out = c.cfg.Stderr
	default:
		return nil // of a later version
	}
	if out == nil {
		return nil
	}
	_, err := out.Write(data)
	return err
}

// forward sends the client's input.
func (c *Client) forward() {
	buf := make([]byte, proto.Chunk)
	for {
		n, err := c.cfg.Stdin.Read(buf)
		if n > 0 {
			c.send(proto.Frame(proto.KindInput, buf[:n]))
		}
		if err != nil {
			if errors.Is(err, io.EOF) && !c.terminal {
				c.send(proto.Frame(proto.KindEOF, nil))
			} else if c.cfg.InputEnd != nil {
				c.cfg.InputEnd(err)
			}
			return
		}
	}
}

// Detach leaves the session, which continues. Wait then returns.
func (c *Client) Detach() {
	c.mu.Lock()
	c.detached = true
	c.mu.Unlock()
	// In the background: a session that does not read its input must not delay it.
	go func() {
		c.send(proto.Frame(proto.KindDetach, nil))
		_ = c.in.Close()
	}()
	go c.end()
}

// leaveGrace is how long a connection may take to end.
const leaveGrace = 2 * time.Second

// end waits for the end of the connection, which what is in the sandbox could delay.
func (c *Client) end() {
	select {
	case <-c.exited:
		return
	case <-time.After(leaveGrace):
	}
	c.cut()
}

// Continues reports, after Wait, whether the session was running when this client left or
// was lost.
func (c *Client) Continues() bool {
	select {
	case <-c.started:
		return c.state == nil && !c.killed
	default:
		return false
	}
}

func (c *Client) left() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.detached
}

// Wait waits until the session has ended or the client has left. It returns the
// session's exit code. A failed start is a Failure.
func (c *Client) Wait() (int, error) {
	<-c.done
	_ = c.in.Close()
	c.end()
	<-c.exited
	switch {
	case c.failure != nil:
		return 0, &Failure{Text: proto.Printable(c.failure.Text), Code: c.failure.Code}
	case c.state != nil:
		return c.state.Code, nil
	case c.left():
		return 0, nil
	case c.killed || c.err != nil:
		return c.code, c.err
	}
	// The guest program has failed, or PID 1 has closed the connection.
	text := strings.TrimPrefix(proto.Printable(strings.TrimSpace(c.stderr.String())), "bottle: ")
	if text == "" {
		text = "the connection to the session was lost"
	}
	code := c.code
	if code == 0 {
		code = exitBottle
	}
	return 0, &Failure{Text: text, Code: code}
}

// exitBottle is the exit code of bottle's own failures.
const exitBottle = 125

// Killed and LimitsReached are those of Session.
func (c *Client) Killed() bool { return c.state == nil && c.killed }

// LimitsReached returns the limits that the agent's task reached during the session.
func (c *Client) LimitsReached() []*runtime.LimitError { return c.limits }

// Signal sends a signal to the session's process.
func (c *Client) Signal(_ context.Context, sig syscall.Signal) error {
	go c.send(proto.Frame(proto.KindSignal, []byte{byte(sig)}))
	return nil
}

// Resize sets the terminal's size, in cells. With several clients the last one wins.
func (c *Client) Resize(_ context.Context, width, height uint16) error {
	go c.send(proto.JSON(proto.KindResize, proto.Size{Width: width, Height: height}))
	return nil
}

// head keeps the beginning of what is written to it.
type head struct {
	mu   sync.Mutex
	data []byte
}

const headBytes = 4 << 10

func (h *head) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.data = append(h.data, p[:min(len(p), headBytes-len(h.data))]...)
	return len(p), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.data)
}
