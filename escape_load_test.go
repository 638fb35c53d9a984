package bottle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
)

// slowest bounds the response time of other bottles and the host during an
// overload, on a small and busy machine.
const slowest = 5 * time.Second

// overload is an attempt to exhaust a resource of the host.
type overload struct {
	name string
	args []string
	// limit is the amount at which a limit must stop the prober; 0 if no limit
	// applies.
	limit int
	// gvisorOnly is set if the limit exists only under gVisor.
	gvisorOnly bool
	// fatal is set if exceeding the limit may end the agent.
	fatal bool
}

var overloads = []overload{
	{name: "fork bomb", args: []string{"fork", "300"}, limit: 200},
	{name: "disk filler", args: []string{"disk", "300"}, limit: 257, gvisorOnly: true},
	{name: "log flood by refusals", args: []string{"requests", segment.ProxyAddrPort().String(), "6000"}},
	{name: "log flood by output", args: []string{"output", "64"}},
	{name: "connections to the proxy", args: []string{"connect", segment.ProxyAddrPort().String(), "3000"}},
	{name: "memory hog", args: []string{"memory", "700"}, limit: 512, fatal: true},
}

// TestOverload has an agent exhaust resources while the host and another bottle must
// remain responsive.
func TestOverload(t *testing.T) {
	leakcheck.Check(t)
	s := newEscapeSuite(t)
	for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		t.Run(runtimeName, func(t *testing.T) {
			s := s.with(t)
			b := s.launch(runtimeName, nil)
			for _, o := range overloads {
				if o.gvisorOnly && runtimeName == runtime.RuntimeRunc {
					continue
				}
				t.Run(o.name, func(t *testing.T) { s.with(t).overload(b.Name, o) })
			}
		})
	}
	t.Run("controls", func(t *testing.T) {
		s := s.with(t)
		s.overloadControls(s.other.Name)
	})
}

// overloadControls runs the overloads without their limits: on the host or, for the
// disk, in a bottle under runc.
func (s *escapeSuite) overloadControls(runc string) {
	s.t.Helper()
	for _, o := range overloads {
		var out []byte
		var err error
		switch {
		case o.limit == 0:
			continue
		case o.gvisorOnly:
			text, code := output(s.t, s.e, runc, append([]string{"/probe"}, o.args...)...)
			out, err = []byte(text), nil
			if code != 0 {
				err = fmt.Errorf("exit %d", code)
			}
		default:
			out, err = exec.Command(s.probe, o.args...).Output()
		}
		if want := o.args[1] + " <nil>"; err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), want) {
			s.t.Errorf("control of %s: stopped without the limit: %v, %q", o.name, err, out)
		}
	}
}

func (s *escapeSuite) overload(name string, o overload) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 40*time.Second)
	defer cancel()
	out := &tailBuffer{}
	session, err := s.e.Exec(ctx, name, session.Config{Command: append([]string{"/probe"}, o.args...), Stdout: out, Stderr: io.Discard})
	if err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := session.Wait()
		ended <- err
	}()
	for checks := 0; ; checks++ {
		s.checkOthers()
		select {
		case err = <-ended:
		case <-ctx.Done():
			s.t.Fatalf("the overload did not end in time (%d checks of other bottles)", checks)
		default:
			continue
		}
		break
	}
	if err != nil && !o.fatal {
		s.t.Errorf("the session: %v", err)
	}
	s.checkOthers()
	if o.limit > 0 {
		s.checkLimit(out.tail(), o)
	}
	if size := s.logSize(name); size > 64<<20 {
		s.t.Errorf("the bottle's files have grown to %d MiB", size>>20)
	}
	if !o.fatal {
		s.checkAlive(name)
	}
}

// checkLimit compares the prober's last count with the limit.
func (s *escapeSuite) checkLimit(tail string, o overload) {
	s.t.Helper()
	lines := strings.Split(strings.TrimSpace(tail), "\n")
	count, _, _ := strings.Cut(lines[len(lines)-1], " ")
	n, err := strconv.Atoi(count)
	if err != nil || n > o.limit || n == 0 && o.name != "memory hog" {
		s.t.Errorf("the prober reached %q, want at most %d", tail, o.limit)
	}
}

// checkAlive checks that the overloaded bottle itself still works.
func (s *escapeSuite) checkAlive(name string) {
	s.t.Helper()
	if err := s.exec(name); err != nil {
		s.t.Errorf("the agent no longer works: %v", err)
	}
	if err := s.proxyHealth(name); err != nil {
		s.t.Errorf("the proxy no longer works: %v", err)
	}
}

// checkOthers checks that the other bottle's agent and proxy and the host respond in
// time.
func (s *escapeSuite) checkOthers() {
	s.t.Helper()
	for what, ask := range map[string]func() error{
		"another bottle's agent": func() error { return s.exec(s.other.Name) },
		"another bottle's proxy": func() error { return s.proxyHealth(s.other.Name) },
		"a service on the host": func() error {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("192.0.2.2:%d", victimPort), slowest)
			if err != nil {
				return err
			}
			return c.Close()
		},
	} {
		start := time.Now()
		if err := ask(); err != nil {
			s.t.Errorf("%s does not respond: %v", what, err)
		}
		if took := time.Since(start); took > slowest {
			s.t.Errorf("%s took %v to respond", what, took)
		}
	}
}

func (s *escapeSuite) exec(name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 2*slowest)
	defer cancel()
	session, err := s.e.Exec(ctx, name, session.Config{Command: []string{"/probe", "output", "0"}, Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		return err
	}
	code, err := session.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("exit %d", code)
	}
	return err
}

func (s *escapeSuite) proxyHealth(name string) error {
	client := &http.Client{Timeout: slowest, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.DialIn(ctx, netns.ProxyPath(s.e.dir(name)), network, addr)
		},
	}}
	res, err := client.Get(segment.ProxyURL() + "/health")
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		err = errors.New(res.Status)
	}
	return errors.Join(err, res.Body.Close())
}

// logSize returns the size of the bottle's files on disk, without its image.
func (s *escapeSuite) logSize(name string) (size int64) {
	s.t.Helper()
	err := filepath.WalkDir(s.e.stateDir(name), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// A file may have been rotated away meanwhile.
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			size += fi.Size()
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return size
}

// tailBuffer keeps the last 256 bytes that are written to it.
type tailBuffer struct{ last bytes.Buffer }

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.last.Write(p[max(0, len(p)-256):])
	if extra := b.last.Len() - 256; extra > 0 {
		b.last.Next(extra)
	}
	return len(p), nil
}

func (b *tailBuffer) tail() string { return b.last.String() }
