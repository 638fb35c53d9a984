package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const (
	// chaosEnv is the duration of TestChaos (`make test-chaos`: ten minutes).
	chaosEnv     = "BOTTLE_TEST_CHAOS"
	chaosTime    = 40 * time.Second
	chaosWorkers = 3
	chaosBottles = 3 // of one worker at a time
	chaosLimit   = 2 * time.Minute
)

// chaos is a host where several users start, use and end bottles at random, while
// containerd is restarted.
type chaos struct {
	user
	// restarts and cleanups count their beginnings and ends: a change during a command
	// means that one overlapped it.
	restarts, cleanups atomic.Int64

	mu   sync.Mutex
	done map[string]int // commands by kind
	late int            // commands that an overlapping restart let fail
}

// chaosBottle is a bottle with a session that lasts until somebody ends it.
type chaosBottle struct {
	name  string
	cmd   *exec.Cmd
	stdin interface{ Close() error }
	errs  bytes.Buffer
	// ended: somebody ends it. cleanups: their count when it was started.
	ended    atomic.Bool
	cleanups int64
	gone     chan struct{} // closed when the process has ended
}

// process returns a command that nothing interrupts.
func (c *chaos) process(args ...string) *exec.Cmd {
	cmd := exec.Command(labtest.Program(c.t), args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "XDG_STATE_HOME="+filepath.Join(c.dir, ".state"))
	return cmd
}

// do runs a command to its end, and reports whether it succeeded. A failure is an error of
// the test unless containerd was restarted meanwhile, or excused says so.
func (c *chaos) do(kind, want string, excused func() bool, args ...string) (ok bool) {
	before := c.restarts.Load()
	cmd := c.process(args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		c.t.Error(err)
		return false
	}
	hang := time.AfterFunc(chaosLimit, func() {
		_ = abort(cmd.Process)
	})
	err := cmd.Wait()
	if !hang.Stop() {
		c.t.Errorf("bottle %s hangs: %s", strings.Join(args, " "), &errs)
	}
	ok = err == nil && (want == "" || out.String() == want)
	restarted := before%2 == 1 || c.restarts.Load() != before
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[kind]++
	switch {
	case ok:
	case restarted && cmd.ProcessState.ExitCode() == 125:
		c.late++
	case excused == nil || !excused():
		c.t.Errorf("bottle %s: %v: %q: %s", strings.Join(args, " "), err, &out, &errs)
	}
	return ok
}

// start launches a bottle, and returns nil if that fails.
func (c *chaos) start(name, runtime string) *chaosBottle {
	b := &chaosBottle{name: name, gone: make(chan struct{}), cleanups: c.cleanups.Load()}
	before := c.restarts.Load()
	b.cmd = c.process("run", "--trust", "wait", "--proxy", "builtin", "--runtime", runtime, "--yes", "--name", name)
	b.cmd.Stderr = &b.errs
	var ready readyWriter
	ready.said = make(chan struct{})
	b.cmd.Stdout = &ready
	stdin, err := b.cmd.StdinPipe()
	if err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		c.t.Error(err)
		return nil
	}
	b.stdin = stdin
	go func() {
		_ = b.cmd.Wait() // judged by watch
		close(b.gone)
	}()
	c.mu.Lock()
	c.done["run "+runtime]++
	c.mu.Unlock()
	select {
	case <-ready.said:
		go c.watch(b)
		return b
	case <-time.After(chaosLimit):
		_ = abort(b.cmd.Process)
		<-b.gone
		c.t.Errorf("bottle run %s hangs: %s", name, &b.errs)
	case <-b.gone:
	}
	if before%2 == 1 || c.restarts.Load() != before || c.cleanedSince(b) {
		c.mu.Lock()
		c.late++
		c.mu.Unlock()
	} else {
		c.t.Errorf("bottle run %s: %v: %s", name, b.cmd.ProcessState, &b.errs)
	}
	return nil
}

// readyWriter closes said at the first output.
type readyWriter struct {
	once sync.Once
	said chan struct{}
}

func (w *readyWriter) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.said) })
	return len(p), nil
}

// cleanedSince reports whether a cleanup may have removed the bottle.
func (c *chaos) cleanedSince(b *chaosBottle) bool {
	return b.cleanups%2 == 1 || c.cleanups.Load() != b.cleanups
}

// watch reports a bottle that ends without anybody ending it.
func (c *chaos) watch(b *chaosBottle) {
	<-b.gone
	if !b.ended.Load() && !c.cleanedSince(b) {
		c.t.Errorf("%s ended and nobody ended it: %v: %s", b.name, b.cmd.ProcessState, &b.errs)
	}
}

// end ends a bottle in one of several ways.
func (c *chaos) end(b *chaosBottle, way int) {
	b.ended.Store(true)
	gone := func() bool { return c.cleanedSince(b) }
	ok := true
	switch way {
	case 1:
		_ = b.cmd.Process.Kill() // it may have ended
	case 2:
		ok = c.do("rm", "", gone, "rm", "-f", b.name)
	case 3:
		ok = c.do("stop", "", gone, "stop", b.name)
	case 4:
		_ = b.cmd.Process.Signal(syscall.SIGTERM) // likewise
	}
	if way == 0 || !ok { // a command that a restart let fail has not ended it
		_ = b.stdin.Close() // the pipe of a process that may have ended
	}
	select {
	case <-b.gone:
	case <-time.After(chaosLimit):
		_ = abort(b.cmd.Process)
		<-b.gone
		c.t.Errorf("bottle run %s hangs after end %d: %s", b.name, way, &b.errs)
	}
}

// work is one user's life until the end of the test.
func (c *chaos) work(id int, random *rand.Rand, end time.Time) {
	var mine []*chaosBottle
	for n := 0; time.Now().Before(end); n++ {
		if len(mine) == 0 || len(mine) < chaosBottles && random.IntN(3) == 0 {
			runtime := []string{"runsc", "runsc", "runc"}[random.IntN(3)]
			if b := c.start(fmt.Sprintf("claude-bottle-chaos-%d-%d", id, n), runtime); b != nil {
				mine = append(mine, b)
			}
			continue
		}
		i := random.IntN(len(mine))
		b := mine[i]
		lost := func() bool { return c.cleanedSince(b) }
		switch random.IntN(8) {
		case 0, 1, 2:
			c.do("exec", "hi\n", lost, "exec", b.name, "echo", "hi")
		case 3:
			c.do("allow", "", lost, "allow", b.name, "refused.test")
		case 4:
			c.do("deny", "", lost, "deny", b.name, "refused.test")
		case 5:
			c.do("list", "", nil, "list", "-a")
		case 6:
			c.end(b, random.IntN(5))
			mine = append(mine[:i], mine[i+1:]...)
		case 7:
			if random.IntN(4) > 0 {
				continue
			}
			c.cleanups.Add(1)
			c.do("cleanup", "", nil, "cleanup", "--yes")
			c.cleanups.Add(1)
		}
		for i := len(mine) - 1; i >= 0; i-- {
			select {
			case <-mine[i].gone:
				mine = append(mine[:i], mine[i+1:]...)
			default:
			}
		}
	}
	for _, b := range mine {
		c.end(b, random.IntN(5))
	}
}

// TestChaos starts, uses and ends bottles at random from several processes, while
// containerd is killed and started. Only what somebody ended ends, and at the end nothing
// is left.
func TestChaos(t *testing.T) {
	leakcheck.Check(t)
	duration, err := time.ParseDuration(os.Getenv(chaosEnv))
	if err != nil {
		duration = chaosTime
	}
	random := faultRand(t)
	c := &chaos{user: newUser(t), done: map[string]int{}}
	labtest.Program(t) // build it first
	end := time.Now().Add(duration)
	var wg sync.WaitGroup
	for id := range chaosWorkers {
		r := rand.New(rand.NewPCG(random.Uint64(), 0))
		wg.Go(func() { c.work(id, r, end) })
	}
	for time.Now().Before(end) {
		time.Sleep(time.Duration(8+random.IntN(15)) * time.Second)
		c.restarts.Add(1)
		for _, verb := range []string{[]string{"kill", "stop"}[random.IntN(2)], "start"} {
			if out, err := exec.Command("../../../scripts/lab.d/restart-containerd.sh", verb).CombinedOutput(); err != nil {
				t.Errorf("%s containerd: %v: %s", verb, err, out)
			}
		}
		c.restarts.Add(1)
	}
	wg.Wait()
	if r := c.bottle("cleanup", "--yes"); r.code != 0 {
		t.Errorf("cleanup: exit %d: %s", r.code, r.stderr)
	}
	t.Logf("%s: %v, %d restarts of containerd, %d commands failed during one", duration, c.done, c.restarts.Load()/2, c.late)
}
