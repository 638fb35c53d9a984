package bottle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	goruntime "runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
)

// TestSessionsOfPID1 runs sessions under both runtimes: they are children of PID 1, except
// those of another user, and the sandbox can neither see nor prepare where it is reached.
func TestSessionsOfPID1(t *testing.T) {
	leakcheck.Check(t)
	for _, name := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		t.Run(name, func(t *testing.T) {
			e := openEngine(t)
			s := testSpec(t, simpleManifest)
			s.Runtime = name
			b, err := e.Launch(t.Context(), prepare(t, e, s))
			if err != nil {
				t.Fatal(err)
			}
			defer remove(t, b)
			const parent = `read -r _ _ _ parent _ </proc/self/stat; echo $parent`
			for user, want := range map[string]string{"": "1", "12345": "0"} {
				var out bytes.Buffer
				cfg := session.Config{Command: []string{"sh", "-c", parent}, User: user, Stdout: &out, Stderr: &out}
				p, err := e.Exec(t.Context(), b.Name, cfg)
				if err != nil {
					t.Fatal(err)
				}
				if code, err := p.Wait(); err != nil || code != 0 || strings.TrimSpace(out.String()) != want {
					t.Errorf("user %q: parent %q, exit %d, %v; want %s", user, &out, code, err, want)
				}
			}
			if out, code := output(t, e, b.Name, "sh", "-c", "echo >/.bottle/session-AAAAAAAAAAAAAAAAAAAAAAAAAA"); code == 0 {
				t.Errorf("the agent can write to the directory of sockets: %q", out)
			}
			concurrentSessions(t, e, b.Name)
			killedSession(t, e, b.Name)
			slowReader(t, e, b.Name)
			slowProcess(t, e, b.Name)
			stolenRecords(t, e, b.Name)
			files, err := os.ReadDir(session.GuestDir(e.dir(b.Name)))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				if strings.HasPrefix(f.Name(), "session-") {
					t.Errorf("left in the guest directory: %s", f.Name())
				}
			}
		})
	}
}

// concurrentSessions: several sessions echo different input.
func concurrentSessions(t *testing.T, e *Engine, name string) {
	t.Helper()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			text := bytes.Repeat([]byte{byte(i), '\n'}, 300_000)
			got := sha256.New()
			p, err := e.Exec(t.Context(), name, session.Config{
				Command: []string{"cat"}, Stdin: bytes.NewReader(text), Stdout: got, Stderr: io.Discard,
			})
			if err != nil {
				t.Error(err)
				return
			}
			code, err := p.Wait()
			if want := sha256.Sum256(text); err != nil || code != 0 || !bytes.Equal(got.Sum(nil), want[:]) {
				t.Errorf("session %d: exit %d, %v, or other output", i, code, err)
			}
		})
	}
	all.Wait()
}

// killedSession: a session gets signals while it ignores its input.
func killedSession(t *testing.T, e *Engine, name string) {
	t.Helper()
	out := &signalled{ready: make(chan struct{})}
	in, w := io.Pipe()
	defer func() { _ = w.Close() }()
	go func() {
		for {
			if _, err := fmt.Fprintln(w, strings.Repeat("input", 1000)); err != nil {
				return
			}
		}
	}()
	p, err := e.Exec(t.Context(), name, session.Config{
		Command: []string{"sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 0.05; done"}, Stdin: in, Stdout: out, Stderr: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	<-out.ready
	if err := p.Signal(t.Context(), syscall.SIGTERM); err != nil {
		t.Error(err)
	}
	if code, err := p.Wait(); code != 7 || err != nil {
		t.Errorf("exit %d, %v; want 7", code, err)
	}
	_ = in.Close()
}

// streamed is how much slowReader and slowProcess send.
const streamed = 100 << 20

// slowReader: a client that does not read stops its session, and no other. What it did not
// read is not collected anywhere, and arrives in the end.
func slowReader(t *testing.T, e *Engine, name string) {
	t.Helper()
	base := memoryOfPID1(t, e, name)
	var before, stopped goruntime.MemStats
	goruntime.ReadMemStats(&before)
	out := &gate{began: make(chan struct{}), open: make(chan struct{})}
	p, err := e.Exec(t.Context(), name, session.Config{
		Command: []string{"sh", "-c", "i=0; while [ $i -lt 100 ]; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i >/tmp/sent; done"},
		Stdout:  out, Stderr: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	<-out.began
	sent := steady(func() string {
		text, _ := output(t, e, name, "sh", "-c", "cat /tmp/sent 2>/dev/null || echo 0")
		return text
	})
	goruntime.ReadMemStats(&stopped)
	grown := int64(stopped.HeapAlloc) - int64(before.HeapAlloc)
	if more := memoryOfPID1(t, e, name) - base; len(sent) != len("0\n") || more > 24<<10 || grown > 24<<20 {
		t.Errorf("%s MiB were written without a reader: PID 1 has %d kB more, the client %d bytes", sent, more, grown)
	}
	close(out.open)
	if code, err := p.Wait(); code != 0 || err != nil || out.n != streamed {
		t.Errorf("exit %d, %v, %d bytes, want %d", code, err, out.n, streamed)
	}
}

// slowProcess: a process that does not read stops its client, and gets all of the input in
// the end.
func slowProcess(t *testing.T, e *Engine, name string) {
	t.Helper()
	in := &zeros{}
	var out bytes.Buffer
	p, err := e.Exec(t.Context(), name, session.Config{
		Command: []string{"sh", "-c", "while ! [ -e /tmp/go ]; do sleep 0.05; done; wc -c"},
		Stdin:   io.LimitReader(in, streamed), Stdout: &out, Stderr: io.Discard,
	})
	if err != nil {
		t.Fatal(err)
	}
	read := steady(func() int64 {
		output(t, e, name, "true")
		return in.n.Load()
	})
	if read > 4<<20 {
		t.Errorf("%d bytes were read for a process that reads nothing", read)
	}
	output(t, e, name, "touch", "/tmp/go")
	if code, err := p.Wait(); code != 0 || err != nil || strings.TrimSpace(out.String()) != fmt.Sprint(streamed) {
		t.Errorf("exit %d, %v, %s bytes, want %d", code, err, &out, streamed)
	}
}

// memoryOfPID1 returns its resident memory, in kB.
func memoryOfPID1(t *testing.T, e *Engine, name string) (kb int) {
	t.Helper()
	text, _ := output(t, e, name, "grep", "VmRSS", "/proc/1/status")
	if _, err := fmt.Sscanf(text, "VmRSS: %d kB", &kb); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	t.Logf("PID 1 has %d kB", kb)
	return kb
}

// steady returns a value when it does not change any more.
func steady[T comparable](value func() T) T {
	last := value()
	for same := 0; same < 5; same++ {
		if now := value(); now != last {
			same, last = 0, now
		}
	}
	return last
}

// gate is a writer that does not take anything before it is open.
type gate struct {
	began, open chan struct{}
	once        sync.Once
	n           int
}

func (g *gate) Write(p []byte) (int, error) {
	g.once.Do(func() { close(g.began) })
	<-g.open
	g.n += len(p)
	return len(p), nil
}

// zeros is an endless input that counts what is read.
type zeros struct{ n atomic.Int64 }

func (z *zeros) Read(p []byte) (int, error) {
	z.n.Add(int64(len(p)))
	return len(p), nil
}

// stolenRecords: programs of the agent read what is meant for PID 1. Sessions then start as
// execs.
func stolenRecords(t *testing.T, e *Engine, name string) {
	t.Helper()
	stolen := &signalled{ready: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// Who gets a record that several wait for is not defined: with many thieves it is hardly PID 1.
	const thieves = `trap 'trap - TERM; kill 0' TERM; for i in 1 2 3 4 5 6 7 8 9 10; do cat /proc/1/fd/0 & done; wait`
	thief, err := e.Exec(ctx, name, session.Config{Command: []string{"sh", "-c", thieves}, Stdout: stolen, Stderr: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	for range 100 { // the first ones before the thieves are there
		if out, code := output(t, e, name, "echo", "hello"); out != "hello\n" || code != 0 {
			t.Errorf("%q, exit %d", out, code)
		}
		select {
		case <-stolen.ready:
			if err := thief.Signal(ctx, syscall.SIGTERM); err != nil {
				t.Error(err)
			}
			if code, err := thief.Wait(); code != 143 || err != nil {
				t.Errorf("the thieves: exit %d, %v", code, err)
			}
			return
		default:
		}
	}
	t.Error("invalid test: nothing was stolen")
}

// signalled closes ready when something was written.
type signalled struct {
	once  sync.Once
	ready chan struct{}
}

func (s *signalled) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.ready) })
	return len(p), nil
}
