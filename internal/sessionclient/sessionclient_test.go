package sessionclient

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// meeting is the FIFO and the guest directory at which a bottle is reached.
func meeting(t *testing.T) (control, guest string) {
	t.Helper()
	// Longer than the address of a socket may be.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	control = filepath.Join(dir, "control")
	if err := unix.Mkfifo(control, 0o600); err != nil {
		t.Fatal(err)
	}
	guest = filepath.Join(dir, "guest")
	if err := os.Mkdir(guest, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(guest, "env"), nil, 0o400); err != nil {
		t.Fatal(err)
	}
	return control, guest
}

// inside connects as PID 1 does, once, and calls fn.
func inside(t *testing.T, control, guest string, fn func(net.Conn)) {
	t.Helper()
	f, err := os.OpenFile(control, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	go func() {
		line := make([]byte, 27)
		_, err := io.ReadFull(f, line)
		id, ok := proto.ID(line)
		if err != nil || !ok {
			t.Errorf("announced %q, %v", line, err)
			return
		}
		dir, err := os.Open(guest)
		if err != nil {
			t.Error(err)
			return
		}
		conn, err := net.Dial("unix", "/proc/self/fd/"+strconv.Itoa(int(dir.Fd()))+"/"+proto.ClientSocket(id))
		_ = dir.Close()
		if err != nil {
			t.Error(err)
			return
		}
		fn(conn)
		_ = conn.Close()
	}()
}

func alive() error { return nil }

var errEnded = errors.New("ended")

// TestReach: PID 1 is reached before and after it has begun to listen, and nothing is left.
func TestReach(t *testing.T) {
	control, guest := meeting(t)
	inside(t, control, guest, func(conn net.Conn) { _, _ = conn.Write([]byte("hello")) })
	conn, err := Reach(t.Context(), control, guest, time.Minute, alive)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(guest)
	if err != nil || len(left) != 1 {
		t.Errorf("left in the guest directory: %v, %v", left, err)
	}
}

// TestNotReached: a sandbox in which nobody listens, that has ended, or that another version
// has launched, leaves the caller the other way.
func TestNotReached(t *testing.T) {
	control, guest := meeting(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx     context.Context
		control string
		alive   func() error
		want    error
	}{
		"nobody listens":  {ended, control, alive, context.Canceled},
		"not running":     {t.Context(), control, func() error { return errEnded }, errEnded},
		"another version": {t.Context(), control + "-none", alive, os.ErrNotExist},
		"full":            {t.Context(), fullFIFO(t), alive, os.ErrDeadlineExceeded},
	} {
		_, err := Reach(c.ctx, c.control, guest, time.Minute, c.alive)
		if !errors.Is(err, ErrNotReached) || !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	left, err := os.ReadDir(guest)
	if err != nil || len(left) != 1 {
		t.Errorf("left in the guest directory: %v, %v", left, err)
	}
}

// fullFIFO returns a FIFO that takes nothing more.
func fullFIFO(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "full")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	for err == nil {
		_, err = unix.Write(fd, make([]byte, 1<<16))
	}
	return name
}

// peered returns a session, and the connection at its other end.
func peered(t *testing.T, streams Streams) (*Process, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	return NewProcess(ours, streams), theirs
}

// TestHostilePeer: what is in a sandbox in place of PID 1 ends no call later than PID 1
// would, and chooses no more than an exit code and output.
func TestHostilePeer(t *testing.T) {
	for name, answer := range map[string][]byte{
		"nothing":      {},
		"no frame":     []byte("x\xff\xff\xff\xff"),
		"half a frame": proto.Frame(proto.KindStdout, []byte("out"))[:6],
		"no state":     proto.Frame(proto.KindState, []byte("[")),
	} {
		d, peer := peered(t, Streams{Stdout: io.Discard})
		go func() { _, _ = peer.Write(answer); _ = peer.Close() }()
		if state, _ := d.Close(); state != nil {
			t.Errorf("%s: code %d", name, state.Code)
		}
	}
	// It takes nothing and says nothing: the context ends the signal.
	d, _ := peered(t, Streams{})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := d.Signal(ctx, syscall.SIGTERM); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("signal: %v", err)
	}
	d.endAfterKill(0)
	if state, _ := d.Close(); state != nil {
		t.Error("a session without an answer has an exit code")
	}
	// The same on a connection that was reached.
	control, guest := meeting(t)
	release := make(chan struct{})
	defer close(release)
	inside(t, control, guest, func(net.Conn) { <-release })
	conn, err := Reach(t.Context(), control, guest, time.Minute, alive)
	if err != nil {
		t.Fatal(err)
	}
	d = NewProcess(conn, Streams{})
	d.endAfterKill(0)
	if state, _ := d.Close(); state != nil {
		t.Error("a session without an answer has an exit code")
	}
}

// TestInputWindow: input that the process does not take delays neither a signal nor the end.
func TestInputWindow(t *testing.T) {
	in, _ := io.Pipe()
	d, peer := peered(t, Streams{Stdin: io.MultiReader(bytes.NewReader(make([]byte, 2*proto.Window)), in)})
	got := 0
	for got < proto.Window {
		kind, data, err := proto.Read(peer)
		if err != nil || kind != proto.KindInput {
			t.Fatalf("%c, %v", kind, err)
		}
		got += len(data)
	}
	sent := make(chan error, 1)
	go func() { sent <- d.Signal(t.Context(), syscall.SIGTERM) }()
	if kind, data, err := proto.Read(peer); err != nil || kind != proto.KindSignal || data[0] != byte(syscall.SIGTERM) {
		t.Errorf("after %d bytes: %c %v, %v; want a signal", got, kind, data, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	if _, err := peer.Write(proto.JSON(proto.KindState, proto.State{Code: 7})); err != nil {
		t.Error(err)
	}
	if state, err := d.Close(); state == nil || state.Code != 7 || err != nil {
		t.Errorf("%v, %v", state, err)
	}
}
