package guest

import (
	"bytes"
	"encoding/binary"
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

// runs starts a session as a client that ends with it, and returns the client's end.
func runs(t *testing.T, h *holder, e proto.Exec, command ...string) peer {
	t.Helper()
	for _, arg := range command {
		e.Command = append(e.Command, []byte(arg))
	}
	theirs, ours := net.Pipe()
	t.Cleanup(func() { _ = theirs.Close() })
	go h.handle(ours)
	p := peer{t, theirs}
	if err := theirs.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	p.send(proto.JSON(proto.KindRequest, proto.Request{Op: proto.OpRun, Exec: &e}))
	if kind, data, err := proto.Read(theirs); err != nil || kind != proto.KindStarted {
		t.Fatalf("%c %s %v", kind, data, err)
	}
	return p
}

// reaping is a holder whose sessions are reaped as by PID 1.
func reaping(t *testing.T) *holder {
	t.Helper()
	h := newHolder()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond): // PID 1 waits for SIGCHLD, tests have other children
			}
			h.mu.Lock()
			for pid := range h.runs {
				var status syscall.WaitStatus
				if got, err := syscall.Wait4(pid, &status, syscall.WNOHANG|syscall.WUNTRACED, nil); err == nil && got == pid {
					h.child(pid, status)
				}
			}
			h.mu.Unlock()
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return h
}

// TestRunEnds: exit codes, and what is said of commands and directories that do not exist.
func TestRunEnds(t *testing.T) {
	h := reaping(t)
	none := filepath.Join(t.TempDir(), "none")
	made := filepath.Join(t.TempDir(), "a", "b")
	for name, c := range map[string]struct {
		exec    proto.Exec
		command []string
		code    int
		output  string
	}{
		"code":        {command: []string{"sh", "-c", "echo out; exit 42"}, code: 42, output: "out\n"},
		"signal":      {command: []string{"sh", "-c", "kill -KILL $$"}, code: 137},
		"not found":   {command: []string{"no-such-command"}, code: 127, output: "bottle: run no-such-command: executable file not found in $PATH\n"},
		"no file":     {command: []string{none}, code: 127, output: "bottle: run " + none + ": no such file or directory\n"},
		"no program":  {command: []string{"/dev/null"}, code: 126, output: "bottle: run /dev/null: permission denied\n"},
		"no command":  {code: 125, output: "bottle: missing command\n"},
		"directory":   {exec: proto.Exec{Dir: []byte(made)}, command: []string{"pwd"}, output: made + "\n"},
		"must":        {exec: proto.Exec{Dir: []byte(none), Must: true}, command: []string{"true"}, code: 126, output: "bottle: change to directory " + none + ": no such file or directory\n"},
		"no files":    {exec: proto.Exec{EnvFiles: []string{none}}, command: []string{"true"}, code: 125, output: "bottle: read environment file: open " + none + ": no such file or directory\n"},
		"environment": {exec: proto.Exec{Env: [][]byte{[]byte("A=\xff b")}}, command: []string{"sh", "-c", `printf %s "$A"`}, output: "\xff b"},
		"argument":    {command: []string{"printf", "%s", "\xff"}, output: "\xff"},
		"leader":      {command: []string{"sh", "-c", `read -r pid _ _ _ group session _ </proc/self/stat; [ "$pid $group $session" = "$$ $$ $$" ]`}},
	} {
		t.Run(name, func(t *testing.T) {
			output, kind, data := runs(t, h, c.exec, c.command...).end()
			if s := state(t, kind, data); output != c.output || s.Code != c.code {
				t.Errorf("%q, code %d; want %q, %d", output, s.Code, c.output, c.code)
			}
		})
	}
}

// TestRunsApart: a client that does not read its output delays no other session, and gets
// all of it in the end.
func TestRunsApart(t *testing.T) {
	h := reaping(t)
	slow := runs(t, h, proto.Exec{}, "sh", "-c", "head -c 3000000 /dev/zero; echo end >&2")
	if output, _, _ := runs(t, h, proto.Exec{}, "echo", "out").end(); output != "out\n" {
		t.Errorf("beside a slow client: %q", output)
	}
	output, kind, data := slow.end()
	if len(output) != 3000004 || state(t, kind, data).Code != 0 {
		t.Errorf("%d bytes, %c", len(output), kind)
	}
}

// TestRunInput: input arrives byte for byte and is confirmed, and its end is the process's.
func TestRunInput(t *testing.T) {
	h := reaping(t)
	p := runs(t, h, proto.Exec{Stdin: true}, "cat")
	want := bytes.Repeat([]byte("\x00line\n\xff"), 10_000)
	var got bytes.Buffer
	taken := 0
	go func() {
		for data := range bytes.SplitAfterSeq(want, []byte("\n")) {
			_, _ = p.conn.Write(proto.Frame(proto.KindInput, data))
		}
		_, _ = p.conn.Write(proto.Frame(proto.KindEOF, nil))
	}()
	for {
		kind, data, err := proto.Read(p.conn)
		if err != nil {
			t.Fatal(err)
		}
		switch kind {
		case proto.KindStdout:
			got.Write(data)
		case proto.KindTaken:
			taken += int(binary.BigEndian.Uint32(data))
		}
		if kind == proto.KindState {
			break
		}
	}
	if !bytes.Equal(got.Bytes(), want) || taken != len(want) {
		t.Errorf("%d of %d bytes, %d confirmed", got.Len(), len(want), taken)
	}
}

// TestRunIgnoresInput: a process that does not read its input gets signals, and a client that
// sends more than the window is disconnected.
func TestRunIgnoresInput(t *testing.T) {
	h := reaping(t)
	full := proto.Frame(proto.KindInput, make([]byte, proto.Window/2))
	p := runs(t, h, proto.Exec{Stdin: true}, "sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done")
	if kind, data, err := proto.Read(p.conn); err != nil || kind != proto.KindStdout {
		t.Fatalf("%c %s %v", kind, data, err)
	}
	p.send(full)
	p.send(proto.Frame(proto.KindSignal, []byte{byte(syscall.SIGTERM)}))
	if _, kind, data := p.end(); state(t, kind, data).Code != 7 {
		t.Errorf("%c %s", kind, data)
	}
	p = runs(t, h, proto.Exec{Stdin: true}, "sleep", "100")
	for range 8 { // what the pipe takes does not count
		if _, err := p.conn.Write(full); err != nil {
			break
		}
	}
	if _, kind, data := p.end(); kind == proto.KindState {
		t.Errorf("after too much input: %s", data)
	}
}

// TestRunWithoutClient: a session whose client has gone gets SIGHUP, with its children.
func TestRunWithoutClient(t *testing.T) {
	h := reaping(t)
	p := runs(t, h, proto.Exec{}, "sh", "-c", "sleep 1000 & echo $!; wait")
	kind, data, err := proto.Read(p.conn)
	if err != nil || kind != proto.KindStdout {
		t.Fatalf("%c %s %v", kind, data, err)
	}
	if err := p.conn.Close(); err != nil {
		t.Fatal(err)
	}
	child := filepath.Join("/proc", strings.TrimSpace(string(data)))
	deadline := time.Now().Add(20 * time.Second)
	for {
		stat, err := os.ReadFile(filepath.Join(child, "stat"))
		h.mu.Lock()
		left := len(h.runs)
		h.mu.Unlock()
		// A container's PID 1 may not reap it.
		if left == 0 && (err != nil || bytes.Contains(stat, []byte(") Z "))) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %d sessions, %s", left, stat)
		}
		time.Sleep(5 * time.Millisecond)
	}
	h.settle()
}

// TestConnect: PID 1 connects to what is announced, in spite of what is not.
func TestConnect(t *testing.T) {
	dir := t.TempDir()
	const id = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	l, err := net.Listen("unix", filepath.Join(dir, proto.ClientSocket(id)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r, w := io.Pipe()
	go newHolder().connect(r, dir)
	go func() {
		_, _ = io.WriteString(w, "noise\n"+strings.Repeat("long", 100)+"\n../"+id[3:]+"\n"+strings.ToLower(id)+"\n")
		_, _ = w.Write(proto.Record(id))
	}()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p := peer{t, conn}
	p.send(proto.JSON(proto.KindRequest, proto.Request{Op: proto.OpState}))
	if _, kind, data := p.end(); !state(t, kind, data).Started.IsZero() {
		t.Errorf("%c %s", kind, data)
	}
}
