package egress

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// proxyConfigEnv makes the test binary run as the proxy.
const proxyConfigEnv = "EGRESS_TEST_PROXY_CONFIG"

// proxyUnboundedEnv removes the bounds of that proxy's memory.
const proxyUnboundedEnv = "EGRESS_TEST_PROXY_UNBOUNDED"

func TestMain(m *testing.M) {
	if config := os.Getenv(proxyConfigEnv); config != "" {
		os.Exit(proxyMain(config))
	}
	if os.Getenv(processVariable) != "" {
		if err := runProcess(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func proxyMain(config string) int {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	run := Main
	if os.Getenv(proxyUnboundedEnv) != "" {
		run = unboundedMain
	}
	if err := run(ctx, config, "", hup, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// proxyProcess is a proxy in its own process.
type proxyProcess struct {
	*testProxy
	cmd     *exec.Cmd
	config  string
	reloads chan Entry // the log entry for each SIGHUP
}

func startProcess(t *testing.T, entries string, env ...string) *proxyProcess {
	t.Helper()
	l := listen(t)
	p := &proxyProcess{
		testProxy: &testProxy{addr: l.Addr().String(), log: newEventLog()},
		config:    filepath.Join(t.TempDir(), "proxy.json"), reloads: make(chan Entry, 1),
	}
	_ = l.Close()
	p.write(t, entries)
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(append(os.Environ(), env...), proxyConfigEnv+"="+p.config)
	var errs strings.Builder
	p.cmd.Stderr = &errs
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for e, err := range ParseLog(out) {
			switch {
			case err != nil:
				t.Error(err)
			case e.Event == EventStartup:
				close(started)
			case e.Event == EventReload, e.Event == EventError && e.Target == "" && e.URL == "":
				p.reloads <- e
			}
		}
	}()
	t.Cleanup(func() {
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		<-ended
		if err := p.cmd.Wait(); err != nil {
			t.Errorf("proxy exit: %v\n%s", err, &errs)
		}
	})
	select {
	case <-started:
	case <-time.After(waitTimeout):
		t.Fatal("the proxy did not start")
	}
	return p
}

// write replaces the configuration atomically, as bottle does. The entries are
// on line 4.
func (p *proxyProcess) write(t *testing.T, entries string) {
	t.Helper()
	text := fmt.Sprintf("{\n\"listen\": %q,\n\"allow_private\": [\"127.0.0.0/8\"],\n%s\n}\n", p.addr, entries)
	if err := os.WriteFile(p.config+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(p.config+".new", p.config); err != nil {
		t.Fatal(err)
	}
}

// reload applies entries and returns the proxy's log entry for it.
func (p *proxyProcess) reload(t *testing.T, entries string) Entry {
	t.Helper()
	p.write(t, entries)
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-p.reloads:
		return e
	case <-time.After(waitTimeout):
		t.Fatal("the proxy logged nothing after SIGHUP")
		return Entry{}
	}
}

// serveAt runs an echo server on a loopback address.
func serveAt(t *testing.T, addr string) string {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				echo(c.(*net.TCPConn))
				_ = c.Close()
			}()
		}
	}()
	return l.Addr().String()
}

// Hundreds of tunnels carry data while the policy of a real proxy process is
// reloaded hundreds of times. No tunnel is closed, no data is lost, each policy
// applies to requests that begin after it, and an invalid policy is reported with
// its line and not applied.
func TestReloadUnderLoad(t *testing.T) {
	const (
		talking, streaming = 200, 4 // tunnels that send with and without pauses
		changes            = 300
		brokenEvery        = 10
	)
	changing, always := serveAt(t, "127.0.0.2:0"), serveAt(t, "127.0.0.3:0")
	with := fmt.Sprintf(`"ssh": [%q, %q]`, always, changing)
	without := fmt.Sprintf(`"ssh": [%q]`, always)
	broken := fmt.Sprintf(`"ssh": [%q, "not a host"]`, changing)
	p := startProcess(t, with)

	stop := make(chan struct{})
	var carried, turns atomic.Int64
	var wg sync.WaitGroup
	for i := range talking + streaming {
		s := p.connect(t, changing)
		if err := s.SetDeadline(time.Time{}); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() { carry(t, s, i >= talking, stop, &carried, &turns) })
	}

	allowed, reloads, refusals := true, 0, 0
	for i := range changes {
		if i%brokenEvery == brokenEvery-1 {
			e := p.reload(t, broken)
			if e.Event != EventError || !strings.Contains(e.Reason, "line 4: ssh[1]") || !strings.Contains(e.Reason, "the current one stays in force") {
				t.Fatalf("change %d, an invalid policy: %+v", i, e)
			}
			refusals++
		} else {
			allowed = !allowed
			entries := without
			if allowed {
				entries = with
			}
			if e := p.reload(t, entries); e.Event != EventReload {
				t.Fatalf("change %d: %+v", i, e)
			}
			reloads++
		}
		want := http.StatusForbidden
		if allowed {
			want = http.StatusOK
		}
		p.wantStatus(t, changing, want)
		p.wantStatus(t, always, http.StatusOK)
		if t.Failed() {
			break
		}
	}
	if n := p.health(t); n < talking+streaming {
		t.Errorf("%d of %d tunnels are open after the changes", n, talking+streaming)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d tunnels carried %d MB in %d turns during %d policy changes, %d of them invalid",
		talking+streaming, carried.Load()/1e6, turns.Load(), reloads+refusals, refusals)
	if n := turns.Load(); n < int64(talking+streaming) {
		t.Errorf("%d turns in %d tunnels: too few", n, talking+streaming)
	}
}

// health returns the number of open tunnels that the proxy reports.
func (p *testProxy) health(t *testing.T) (tunnels int) {
	t.Helper()
	_, body, _ := p.raw(t, http.MethodGet, "GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if _, err := fmt.Sscanf(body, `{"status":"healthy","proxy":"builtin","tunnels":%d`, &tunnels); err != nil {
		t.Fatalf("%q: %v", body, err)
	}
	return tunnels
}

// carry sends data and requires it to be echoed until stop, then closes its
// direction and requires the other to be closed, too.
func carry(t *testing.T, s *stream, eager bool, stop <-chan struct{}, carried, turns *atomic.Int64) {
	sent, got := make([]byte, 32<<10), make([]byte, 32<<10)
	_, _ = rand.NewChaCha8([32]byte{}).Read(sent)
	for n := 0; ; n++ {
		size := 1 + rand.IntN(2000)
		if eager {
			size = len(sent)
		}
		sent[rand.IntN(size)]++
		if _, err := s.Write(sent[:size]); err != nil {
			t.Errorf("turn %d: %v", n, err)
			return
		}
		if _, err := io.ReadFull(s, got[:size]); err != nil || string(got[:size]) != string(sent[:size]) {
			t.Errorf("turn %d: echo is identical: %v, %v", n, string(got[:size]) == string(sent[:size]), err)
			return
		}
		carried.Add(int64(2 * size))
		turns.Add(1)
		pause := time.Duration(0)
		if !eager {
			pause = time.Duration(5+rand.IntN(45)) * time.Millisecond
		}
		select {
		case <-stop:
			if err := s.CloseWrite(); err != nil {
				t.Error(err)
			}
			if rest, err := io.ReadAll(s); err != nil || len(rest) > 0 {
				t.Errorf("after CloseWrite: %d more bytes, %v", len(rest), err)
			}
			return
		case <-time.After(pause):
		}
	}
}
