package bottle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
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
