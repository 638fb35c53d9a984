package guest

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

// warm starts a warm session of a shell command, and reaps it as PID 1 does.
func warm(t *testing.T, h *holder, socket, command string) {
	t.Helper()
	spec := proto.Spec{Path: "/bin/sh", Args: []string{"sh", "-c", command}, Env: os.Environ(), Dir: t.TempDir(), Terminal: true}
	p := ask(t, socket, proto.Request{Op: proto.OpStart, Warm: true, Spec: &spec, Size: proto.Size{Width: 70, Height: 20}})
	if kind, data, err := proto.Read(p.conn); err != nil || kind != proto.KindStarted {
		t.Fatalf("not started: %c %s %v", kind, data, err)
	}
	if err := p.conn.Close(); err != nil {
		t.Fatal(err)
	}
	h.mu.Lock()
	pid := h.pid
	h.mu.Unlock()
	go func() {
		_ = waitChild(pid)
		h.mu.Lock()
		defer h.mu.Unlock()
		var status syscall.WaitStatus
		if got, err := syscall.Wait4(pid, &status, 0, nil); err == nil && got == pid {
			h.child(pid, status)
		}
	}()
}

// expect reads output until a text.
func (p peer) expect(text string) {
	p.t.Helper()
	var seen strings.Builder
	for !strings.Contains(seen.String(), text) {
		kind, data, err := proto.Read(p.conn)
		if err != nil {
			p.t.Fatalf("no %q in %q: %v", text, seen.String(), err)
		}
		if kind == proto.KindStdout {
			seen.Write(data)
		}
	}
}

// drawn waits until the screen of the held session shows a text.
func drawn(t *testing.T, socket, text string) {
	t.Helper()
	p := ask(t, socket, proto.Request{Op: proto.OpLogs, Follow: true})
	var seen strings.Builder
	for !strings.Contains(seen.String(), text) {
		kind, data, err := proto.Read(p.conn)
		if err != nil {
			t.Fatalf("no %q in %q: %v", text, seen.String(), err)
		}
		if kind == proto.KindLog {
			seen.Write(data[9:])
		}
	}
}

// TestWarm: the client that claims a warm session sees its screen and is then as one that has
// started it: its size, input and output, the exit code, and no held session remains.
func TestWarm(t *testing.T) {
	h, socket := held(t)
	warm(t, h, socket, `echo ready; read line; echo "got $line"; stty size; exit 7`)
	drawn(t, socket, "ready")
	p := ask(t, socket, proto.Request{Op: proto.OpClaim})
	if kind, data, err := proto.Read(p.conn); err != nil || kind != proto.KindStarted {
		t.Fatalf("%c %s %v", kind, data, err)
	}
	if _, kind, _ := ask(t, socket, proto.Request{Op: proto.OpClaim}).end(); kind != proto.KindError {
		t.Errorf("a second claim: %c", kind)
	}
	if _, last, data := ask(t, socket, proto.Request{Op: proto.OpState}).end(); state(t, last, data).Running() {
		t.Error("the claimed session is still held")
	}
	p.send(proto.JSON(proto.KindResize, proto.Size{Width: 91, Height: 33}))
	p.expect("ready")
	p.send(proto.Frame(proto.KindInput, []byte("line\n")))
	out, last, data := p.end()
	if got := state(t, last, data); got.Code != 7 || !strings.Contains(out, "got line") || !strings.Contains(out, "33 91") {
		t.Errorf("%q, %+v", out, got)
	}
	select {
	case <-h.cold:
		t.Error("PID 1 ends after a claimed session")
	default:
	}
}

// TestWarmHangUp: a claimed session ends with its client, before and after it is shown.
func TestWarmHangUp(t *testing.T) {
	for _, shown := range []bool{false, true} {
		h, socket := held(t)
		warm(t, h, socket, `echo ready; sleep 1000`)
		drawn(t, socket, "ready")
		p := ask(t, socket, proto.Request{Op: proto.OpClaim})
		if kind, data, err := proto.Read(p.conn); err != nil || kind != proto.KindStarted {
			t.Fatalf("%c %s %v", kind, data, err)
		}
		if shown {
			p.send(proto.JSON(proto.KindResize, proto.Size{}))
			p.expect("ready")
		}
		if err := p.conn.Close(); err != nil {
			t.Fatal(err)
		}
		h.ending.Wait()
	}
}

// TestWarmEnded: a session that has ended cannot be claimed, and PID 1 ends.
func TestWarmEnded(t *testing.T) {
	h, socket := held(t)
	warm(t, h, socket, `exit 3`)
	select {
	case <-h.cold:
	case <-time.After(time.Minute):
		t.Fatal("PID 1 goes on")
	}
	if _, kind, data := ask(t, socket, proto.Request{Op: proto.OpClaim}).end(); kind != proto.KindError {
		t.Errorf("claimed: %c %s", kind, data)
	}
}
