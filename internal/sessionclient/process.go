package sessionclient

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// Files of the guest directory, as package provision writes them.
const (
	envFile     = "env"
	workDirFile = "workdir"
)

// EnvFiles returns the file, in the sandbox, with the variables of a bottle, if it has any.
func EnvFiles(guest string) ([]string, error) {
	fi, err := os.Stat(filepath.Join(guest, envFile))
	if err != nil || fi.Size() == 0 {
		return nil, err
	}
	return []string{proto.GuestDir + "/" + envFile}, nil
}

// WorkDir returns a bottle's working directory. It is empty for a bottle that another
// version launched.
func WorkDir(guest string) string {
	data, _ := os.ReadFile(filepath.Join(guest, workDirFile))
	return string(data)
}

// NewExec describes a process with the bottle's own variables. A directory that is not empty
// replaces the bottle's.
func NewExec(guest string, command []string, dir string) (*proto.Exec, error) {
	files, err := EnvFiles(guest)
	if err != nil {
		return nil, err
	}
	exec := &proto.Exec{EnvFiles: files, Dir: []byte(WorkDir(guest))}
	if dir != "" {
		exec.Dir, exec.Must = []byte(dir), true
	}
	for _, arg := range command {
		exec.Command = append(exec.Command, []byte(arg))
	}
	return exec, nil
}

// Streams are those of a process. Each may be nil.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Process is a process that PID 1 has started. It ends with its client: containerd and the
// runtime do not know it.
type Process struct {
	conn    io.ReadWriteCloser
	streams Streams
	done    chan struct{} // closed when nothing more comes

	// Set before done is closed.
	state    *proto.State
	writeErr error // the first of the output

	sending sync.Mutex // one frame at a time

	mu     sync.Mutex
	cond   *sync.Cond
	window int  // how much more input may be sent
	ended  bool // input is not needed any more
}

// killGrace bounds the wait for the end of a process after SIGKILL.
const killGrace = 10 * time.Second

// NewProcess returns the process of a connection on which it was requested. Closing the
// connection ends a read.
func NewProcess(conn io.ReadWriteCloser, streams Streams) *Process {
	p := &Process{conn: conn, streams: streams, done: make(chan struct{}), window: proto.Window}
	p.cond = sync.NewCond(&p.mu)
	go p.read()
	if streams.Stdin != nil {
		go p.forward()
	}
	return p
}

// read handles what PID 1 sends, until the last frame.
func (p *Process) read() {
	defer close(p.done)
	defer p.endInput()
	frames := proto.NewReader(p.conn, proto.Chunk)
	for {
		kind, data, err := frames.Read()
		if err != nil {
			return
		}
		switch kind {
		case proto.KindStdout:
			p.write("stdout", p.streams.Stdout, data)
		case proto.KindStderr:
			p.write("stderr", p.streams.Stderr, data)
		case proto.KindTaken:
			if len(data) == 4 {
				p.taken(int(binary.BigEndian.Uint32(data)))
			}
		case proto.KindState:
			state := &proto.State{}
			if json.Unmarshal(data, state) == nil {
				p.state = state
			}
			return
		}
	}
}

// write writes output. After the first error the process is killed, because what it goes on
// to write would be lost.
func (p *Process) write(name string, w io.Writer, data []byte) {
	if w == nil || p.writeErr != nil {
		return
	}
	_, err := w.Write(data)
	if err == nil {
		return
	}
	if perr := (*fs.PathError)(nil); errors.As(err, &perr) {
		err = perr.Err // without the path of the caller's file
	}
	p.writeErr = fmt.Errorf("write %s: %w", name, err)
	go func() { _ = p.Signal(context.Background(), syscall.SIGKILL) }() // it always ends
}

// forward sends the client's input.
func (p *Process) forward() {
	buf := make([]byte, proto.Header+proto.Chunk)
	for {
		n, err := p.streams.Stdin.Read(buf[proto.Header:])
		for from := 0; from < n; {
			part := p.reserve(n - from)
			// The header takes the place of what was sent before.
			if part == 0 || p.send(proto.Fill(buf[from:from+proto.Header+part], proto.KindInput)) != nil {
				return
			}
			from += part
		}
		if err != nil {
			_ = p.send(proto.Frame(proto.KindEOF, nil)) // the session may have ended
			return
		}
		if n == len(buf)-proto.Header && n < proto.Window/2 {
			buf = make([]byte, proto.Header+2*n)
		}
	}
}

// reserve waits until input may be sent, and returns how much of n bytes; 0 if the session has
// ended.
func (p *Process) reserve(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.window <= 0 && !p.ended {
		p.cond.Wait()
	}
	if p.ended {
		return 0
	}
	n = min(n, p.window)
	p.window -= n
	return n
}

func (p *Process) taken(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.window = min(p.window+n, proto.Window)
	p.cond.Broadcast()
}

func (p *Process) endInput() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.cond.Broadcast()
}

func (p *Process) send(frame []byte) error {
	p.sending.Lock()
	defer p.sending.Unlock()
	_, err := p.conn.Write(frame)
	return err
}

// tell sends a frame, and returns when it was sent or the context ends.
func (p *Process) tell(ctx context.Context, frame []byte) error {
	sent := make(chan error, 1)
	go func() { sent <- p.send(frame) }()
	select {
	case err := <-sent:
		if errors.Is(err, os.ErrClosed) || errors.Is(err, syscall.EPIPE) {
			return nil // the session has ended
		}
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Signal sends sig to the process. After SIGKILL the session ends even if what is in the
// sandbox does not answer.
func (p *Process) Signal(ctx context.Context, sig syscall.Signal) error {
	if sig == syscall.SIGKILL {
		p.endAfterKill(killGrace)
	}
	return p.tell(ctx, proto.Frame(proto.KindSignal, []byte{byte(sig)}))
}

// endAfterKill ends a session that goes on for a time.
func (p *Process) endAfterKill(grace time.Duration) {
	time.AfterFunc(grace, func() { _ = p.conn.Close() }) // it always ends a read
}

// Resize sets the terminal's size, in cells.
func (p *Process) Resize(ctx context.Context, width, height uint16) error {
	return p.tell(ctx, proto.JSON(proto.KindResize, proto.Size{Width: width, Height: height}))
}

// Done is closed when the process has ended, and its output was written.
func (p *Process) Done() <-chan struct{} { return p.done }

// Close waits until nothing more comes, and closes the connection. It returns the state that
// PID 1 has sent, nil if the connection was lost, and the first error of the output.
func (p *Process) Close() (*proto.State, error) {
	<-p.done
	_ = p.conn.Close() // everything was read
	return p.state, p.writeErr
}
