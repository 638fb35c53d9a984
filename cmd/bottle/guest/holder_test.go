package guest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// held is a holder that reaps its session as PID 1 does, and the socket it listens on.
func held(t *testing.T) (h *holder, socket string) {
	t.Helper()
	h = newHolder()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := listenSession(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go h.serve(l)
	return h, socket
}

// peer is a client's end of a connection.
type peer struct {
	t    *testing.T
	conn net.Conn
}

func ask(t *testing.T, socket string, req proto.Request) peer {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	p := peer{t, conn}
	p.send(proto.JSON(proto.KindRequest, req))
	return p
}

func (p peer) send(frame []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(frame); err != nil {
		p.t.Fatal(err)
	}
}

// end reads everything and returns the output, and the last frame.
func (p peer) end() (output string, last proto.Kind, data []byte) {
	p.t.Helper()
	var out bytes.Buffer
	for {
		kind, frame, err := proto.Read(p.conn)
		if errors.Is(err, io.EOF) {
			return out.String(), last, data
		}
		if err != nil {
			p.t.Fatal(err)
		}
		switch kind {
		case proto.KindStdout, proto.KindStderr:
			out.Write(frame)
		case proto.KindLog:
			out.Write(frame[9:])
		}
		last, data = kind, frame
	}
}

func start(t *testing.T, h *holder, socket string, spec proto.Spec, command string) peer {
	t.Helper()
	spec.Path, spec.Args, spec.Env, spec.Dir = "/bin/sh", []string{"sh", "-c", command}, os.Environ(), t.TempDir()
	p := ask(t, socket, proto.Request{Op: proto.OpStart, Attach: true, Spec: &spec})
	if kind, data, err := proto.Read(p.conn); err != nil || kind != proto.KindStarted {
		t.Fatalf("%c %s %v", kind, data, err)
	}
	go func() { // what PID 1's loop does for all children
		for {
			h.mu.Lock()
			pid := h.pid
			h.mu.Unlock()
			if pid == 0 {
				return
			}
			var status syscall.WaitStatus
			_ = waitChild(pid) // without reaping it, so that its ID is not used again
			h.mu.Lock()
			if got, err := syscall.Wait4(pid, &status, syscall.WNOHANG|syscall.WUNTRACED, nil); err == nil && got == pid {
				h.child(pid, status)
			}
			h.mu.Unlock()
		}
	}()
	return p
}

// state decodes a last frame.
func state(t *testing.T, kind proto.Kind, data []byte) (s proto.State) {
	t.Helper()
	if err := json.Unmarshal(data, &s); err != nil || kind != proto.KindState {
		t.Fatalf("%c %s %v", kind, data, err)
	}
	return s
}

// TestHeldInput: what a client sends is read by the process, byte for byte.
func TestHeldInput(t *testing.T) {
	h, socket := held(t)
	p := start(t, h, socket, proto.Spec{Stdin: true}, "cat; exit 3")
	data := strings.Repeat("\x00\xff\x1b[6n\r\n", 50_000)
	go func() {
		for rest := data; rest != ""; {
			n := min(len(rest), proto.Chunk)
			_, _ = p.conn.Write(proto.Frame(proto.KindInput, []byte(rest[:n])))
			rest = rest[n:]
		}
		_, _ = p.conn.Write(proto.Frame(proto.KindEOF, nil))
	}()
	output, kind, last := p.end()
	if output != data {
		t.Errorf("%d bytes came back of %d", len(output), len(data))
	}
	if s := state(t, kind, last); s.Code != 3 || s.Ended.IsZero() {
		t.Errorf("state %+v", s)
	}
}

// TestHeldLogs: of much output, the newest is kept, and it is asked for after the end.
func TestHeldLogs(t *testing.T) {
	h, socket := held(t)
	p := start(t, h, socket, proto.Spec{}, "i=0; while [ $i -lt 100000 ]; do echo line $i; i=$((i+1)); done")
	if output, _, _ := p.end(); !strings.HasPrefix(output, "line 0\n") || !strings.HasSuffix(output, "line 99999\n") {
		t.Errorf("attached: %d bytes", len(output))
	}
	output, kind, last := ask(t, socket, proto.Request{Op: proto.OpLogs}).end()
	if !strings.HasSuffix(output, "line 99998\nline 99999\n") || strings.Contains(output, "line 0\n") || len(output) > historyBytes {
		t.Errorf("logs: %d bytes", len(output))
	}
	if s := state(t, kind, last); s.Code != 0 {
		t.Errorf("state %+v", s)
	}
}

// TestHeldSlowReader: a client of a terminal that does not read delays neither the process
// nor another client. When it reads, it gets the end of the screen.
func TestHeldSlowReader(t *testing.T) {
	h, socket := held(t)
	p := start(t, h, socket, proto.Spec{Terminal: true}, "i=0; while [ $i -lt 200000 ]; do echo line $i; i=$((i+1)); done; echo the end; read x; exit 4")
	q := ask(t, socket, proto.Request{Op: proto.OpAttach})
	var seen strings.Builder
	for !strings.Contains(seen.String(), "the end") {
		kind, data, err := proto.Read(q.conn)
		if err != nil {
			t.Fatal(err)
		}
		if kind == proto.KindStdout {
			seen.Write(data)
		}
	}
	q.send(proto.Frame(proto.KindInput, []byte("\r")))
	output, kind, last := p.end()
	const all = 200_000 * len("line 99999\r\n")
	if !strings.Contains(output, "the end") || len(output) > all {
		t.Errorf("the slow client got %d bytes", len(output))
	}
	if s := state(t, kind, last); s.Code != 4 {
		t.Errorf("state %+v", s)
	}
}

// TestHeldRefusals: requests that make no sense are answered.
func TestHeldRefusals(t *testing.T) {
	_, socket := held(t)
	for op, want := range map[string]string{
		proto.OpAttach: "no session was started", proto.OpLogs: "no session was started", proto.OpStart: "missing command",
	} {
		_, kind, data := ask(t, socket, proto.Request{Op: op}).end()
		var f proto.Failure
		if err := json.Unmarshal(data, &f); err != nil || kind != proto.KindError || f.Text != want {
			t.Errorf("%s: %c %s", op, kind, data)
		}
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("r\xff\xff\xff\xff")); err != nil { // a frame of 4 GiB
		t.Fatal(err)
	}
	if data, err := io.ReadAll(conn); err != nil || len(data) > 0 {
		t.Errorf("%q, %v", data, err)
	}
}
