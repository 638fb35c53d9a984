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

	"github.com/bot-bottle/bottle/internal/segment"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

// slowest is how long another bottle may take to answer while one misbehaves,
// on machines as small and as busy as those that run the tests.
const slowest = 5 * time.Second

// overload is what one agent does to use the host up.
type overload struct {
	name string
	args []string
	// stopped: how far the prober's own count may come before a limit stops it;
	// 0 if it may come to its end.
	stopped int
	// only under gVisor, where bottle bounds it.
	gvisor bool
	// ends: the agent may be ended for it.
	ends bool
}

var overloads = []overload{
	{name: "fork bomb", args: []string{"fork", "300"}, stopped: 200},
	{name: "disk filler", args: []string{"disk", "300"}, stopped: 257, gvisor: true},
	{name: "log flood by refusals", args: []string{"requests", segment.ProxyAddrPort().String(), "6000"}},
	{name: "log flood by output", args: []string{"output", "64"}},
	{name: "connections to the proxy", args: []string{"connect", segment.ProxyAddrPort().String(), "3000"}},
	{name: "memory hog", args: []string{"memory", "700"}, stopped: 512, ends: true},
}

// TestOverload has an agent use up what it can, while the host and another
// bottle have to answer as before.
func TestOverload(t *testing.T) {
	leakcheck.Check(t)
	s := newScenery(t)
	for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		t.Run(runtimeName, func(t *testing.T) {
			s := s.with(t)
			b := s.launch(runtimeName, nil)
			for _, o := range overloads {
				if o.gvisor && runtimeName == runtime.RuntimeRunc {
					continue
				}
				t.Run(o.name, func(t *testing.T) { s.with(t).overload(b.Name, o) })
			}
		})
	}
	t.Run("controls", func(t *testing.T) {
		s := s.with(t)
		s.unlimited(s.other.Name)
	})
}

// unlimited runs those overloads that a limit stops where the limit is not: on
// the host, but for the disk, which under runc has none.
func (s *scenery) unlimited(runc string) {
	s.t.Helper()
	for _, o := range overloads {
		var out []byte
		var err error
		switch {
		case o.stopped == 0:
			continue
		case o.gvisor:
			text, code := output(s.t, s.e, runc, append([]string{"/probe"}, o.args...)...)
			out, err = []byte(text), nil
			if code != 0 {
				err = fmt.Errorf("exit %d", code)
			}
		default:
			out, err = exec.Command(s.probe, o.args...).Output()
		}
		if want := o.args[1] + " <nil>"; err != nil || !strings.HasSuffix(strings.TrimSpace(string(out)), want) {
			s.t.Errorf("%s is stopped without the limit too, so that the test shows nothing: %v, %q", o.name, err, out)
		}
	}
}

func (s *scenery) overload(name string, o overload) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 40*time.Second)
	defer cancel()
	out := &counter{}
	session, err := s.e.Exec(ctx, name, SessionConfig{Command: append([]string{"/probe"}, o.args...), Stdout: out, Stderr: io.Discard})
	if err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := session.Wait()
		ended <- err
	}()
	for answers := 0; ; answers++ {
		s.answers()
		select {
		case err = <-ended:
		case <-ctx.Done():
			s.t.Fatalf("it has not ended in time, after %d answers of the others", answers)
		default:
			continue
		}
		break
	}
	if err != nil && !o.ends {
		s.t.Errorf("the session: %v", err)
	}
	s.answers()
	if o.stopped > 0 {
		s.stopped(out.tail(), o)
	}
	if size := s.logSize(name); size > 64<<20 {
		s.t.Errorf("the bottle's log holds %d MiB", size>>20)
	}
	if !o.ends {
		s.alive(name)
	}
}

// stopped holds the prober's last count against the limit.
func (s *scenery) stopped(tail string, o overload) {
	s.t.Helper()
	lines := strings.Split(strings.TrimSpace(tail), "\n")
	count, _, _ := strings.Cut(lines[len(lines)-1], " ")
	n, err := strconv.Atoi(count)
	if err != nil || n > o.stopped || n == 0 && o.name != "memory hog" {
		s.t.Errorf("it came to %q, want a limit at %d at the most", tail, o.stopped)
	}
}

// alive wants the overloaded bottle itself to go on.
func (s *scenery) alive(name string) {
	s.t.Helper()
	if err := s.exec(name); err != nil {
		s.t.Errorf("the bottle has not outlived it: %v", err)
	}
	if err := s.healthy(name); err != nil {
		s.t.Errorf("its proxy has not outlived it: %v", err)
	}
}

// answers asks the other bottle's agent and proxy, and the host, for something.
func (s *scenery) answers() {
	s.t.Helper()
	for what, ask := range map[string]func() error{
		"another bottle's agent": func() error { return s.exec(s.other.Name) },
		"another bottle's proxy": func() error { return s.healthy(s.other.Name) },
		"the host's own service": func() error {
			c, err := net.DialTimeout("tcp", fmt.Sprintf("192.0.2.2:%d", victimPort), slowest)
			if err != nil {
				return err
			}
			return c.Close()
		},
	} {
		start := time.Now()
		if err := ask(); err != nil {
			s.t.Errorf("%s does not answer: %v", what, err)
		}
		if took := time.Since(start); took > slowest {
			s.t.Errorf("%s took %v to answer", what, took)
		}
	}
}

func (s *scenery) exec(name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.t.Context()), 2*slowest)
	defer cancel()
	session, err := s.e.Exec(ctx, name, SessionConfig{Command: []string{"/probe", "output", "0"}, Stdout: io.Discard, Stderr: io.Discard})
	if err != nil {
		return err
	}
	code, err := session.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("exit %d", code)
	}
	return err
}

func (s *scenery) healthy(name string) error {
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

// logSize is what the bottle keeps on disk beside its image.
func (s *scenery) logSize(name string) (size int64) {
	s.t.Helper()
	err := filepath.WalkDir(s.e.stateDir(name), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// One that was rotated away meanwhile has no size.
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

// counter keeps the end of what is written to it.
type counter struct{ last bytes.Buffer }

func (c *counter) Write(p []byte) (int, error) {
	c.last.Write(p[max(0, len(p)-256):])
	if extra := c.last.Len() - 256; extra > 0 {
		c.last.Next(extra)
	}
	return len(p), nil
}

func (c *counter) tail() string { return c.last.String() }
