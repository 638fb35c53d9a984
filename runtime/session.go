package runtime

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/fifo"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/known"
)

// ErrNotRunning is wrapped if an operation needs a running task and there is none.
var ErrNotRunning = errors.New("bottle is not running")

// SessionConfig describes a process to run in an agent's task.
type SessionConfig struct {
	Args     []string
	Env      []string // NAME=VALUE, overrides the container's; not secret
	User     *User    // nil: the agent's
	Terminal bool
	Width    uint16 // of the terminal, in cells; 0: unknown
	Height   uint16
	Stdin    io.Reader // nil: none
	Stdout   io.Writer
	Stderr   io.Writer // not used with a terminal
}

// Session is a process in an agent's task.
type Session struct {
	proc    containerd.Process
	c       *Client
	task    containerd.Task
	spec    *specs.Spec
	exit    <-chan containerd.ExitStatus
	dir     string
	stdin   *stdinReader
	out     *outputMonitor
	filters []*failureFilter
	before  hosttask.Events

	// Set by Wait.
	killed bool
	limits []*LimitError
}

// Exec starts a process in the running agent task called name. The caller must
// call Wait.
func (c *Client) Exec(ctx context.Context, name string, cfg SessionConfig) (*Session, error) {
	ctx = c.withNamespace(ctx)
	cont, spec, err := c.loadContainer(ctx, name)
	if err != nil {
		return nil, err
	}
	task, err := taskOf(ctx, cont)
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("load task %s: %w", name, ErrNotRunning)
	}
	if err != nil {
		return nil, err
	}
	return c.execIn(ctx, task, spec, cfg)
}

// loadContainer loads a container, which may have a task, and its spec. The error wraps
// ErrNotRunning if there is none.
func (c *Client) loadContainer(ctx context.Context, name string) (containerd.Container, *specs.Spec, error) {
	cont, err := c.ctrd.LoadContainer(ctx, name)
	if err != nil {
		return nil, nil, fmt.Errorf("load container %s: %w", name, notRunning(err))
	}
	rec, err := cont.Info(ctx, containerd.WithoutRefreshedMetadata)
	if err != nil {
		return nil, nil, fmt.Errorf("load container %s: %w", name, err)
	}
	spec, err := cont.Spec(known.WithRecord(ctx, rec))
	if err != nil {
		return nil, nil, fmt.Errorf("read spec of %s: %w", name, err)
	}
	return cont, spec, nil
}

// Exec is Client.Exec for a task that this client has started. It is faster,
// because it needs no lookups.
func (t *Task) Exec(ctx context.Context, cfg SessionConfig) (*Session, error) {
	return t.c.execIn(t.c.withNamespace(ctx), t.task, t.spec, cfg)
}

func (c *Client) execIn(ctx context.Context, task containerd.Task, spec *specs.Spec, cfg SessionConfig) (*Session, error) {
	s, err := c.exec(ctx, task, spec, cfg)
	if err == nil || !notStarted(ctx, task) {
		return s, err
	}
	reached, _ := c.limitsSince(ctx, task.ID(), spec, hosttask.Events{})
	for _, l := range reached {
		if l.Limit == LimitMemory || l.Limit == LimitPids && isRunsc(spec) {
			return nil, fmt.Errorf("%w: %w", ErrNotRunning, l)
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrNotRunning, err)
}

// notStarted reports whether a task has ended or has not started yet. The shims
// have no common error for this.
func notStarted(ctx context.Context, task containerd.Task) bool {
	st, err := statusOf(ctx, task)
	return errdefs.IsNotFound(err) || err == nil && (st.Status == containerd.Stopped || st.Status == containerd.Created)
}

func notRunning(err error) error {
	if errdefs.IsNotFound(err) {
		return ErrNotRunning
	}
	return err
}

func (c *Client) exec(ctx context.Context, task containerd.Task, spec *specs.Spec, cfg SessionConfig) (*Session, error) {
	id := "session-" + randomID()
	dir := filepath.Join(c.Dir(task.ID()), id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create session directory: %w", err)
	}
	s := &Session{c: c, task: task, spec: spec, dir: dir, out: newOutputMonitor(), before: c.limitEvents(task.ID())}
	cfg.Stdout, cfg.Stderr = s.wrapOutput("stdout", cfg.Stdout), s.wrapOutput("stderr", cfg.Stderr)
	stdin := newStdinReader(cfg.Stdin)
	proc, err := task.Exec(ctx, id, process(runtimeOf(spec), spec.Process, cfg), cio.NewCreator(cfg.io(stdin, dir)...))
	if err != nil {
		s.out.start(err)
		stdin.cancel()
		return nil, errors.Join(fmt.Errorf("exec in %s: %w", task.ID(), err), os.RemoveAll(dir))
	}
	s.proc, s.stdin = proc, stdin
	stdin.pipe = proc.IO().Config().Stdin
	stdin.close = func() { c.closeStdin(c.withNamespace(stdin.ctx), proc) }
	if s.exit, err = c.waitExit(context.WithoutCancel(ctx), proc); err == nil {
		// Not proc.Start, which after an error waits for the end of the output.
		_, err = c.ctrd.TaskService().Start(ctx, &tasks.StartRequest{ContainerID: task.ID(), ExecID: id})
		err = errgrpc.ToNative(err)
	}
	s.out.start(err)
	if err != nil {
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("start process in %s: %w", task.ID(), err), s.remove(rctx))
	}
	close(stdin.started)
	if cfg.Terminal && cfg.Width > 0 {
		// Runsc's shim ignores the size in the spec. An error means that the process
		// has already ended.
		_ = s.Resize(ctx, cfg.Width, cfg.Height)
	}
	return s, nil
}

// wrapOutput monitors an output and, under runsc, filters it.
func (s *Session) wrapOutput(name string, w io.Writer) io.Writer {
	if w == nil {
		return nil
	}
	if isRunsc(s.spec) {
		f := &failureFilter{name: name, w: w}
		s.filters = append(s.filters, f)
		w = f
	}
	return s.out.wrap(name, w)
}

func process(runtime string, base *specs.Process, cfg SessionConfig) *specs.Process {
	p := *base
	p.Args = cfg.Args
	if cfg.User != nil {
		setUser(&p, runtime, *cfg.User)
	}
	p.Env = mergeEnv(p.Env, cfg.Env, "/")
	p.Terminal = cfg.Terminal
	if cfg.Terminal && cfg.Width > 0 {
		p.ConsoleSize = &specs.Box{Width: uint(cfg.Width), Height: uint(cfg.Height)}
	}
	return &p
}

func (cfg SessionConfig) io(stdin *stdinReader, dir string) []cio.Opt {
	var in io.Reader
	if cfg.Stdin != nil {
		in = stdin
	}
	opts := []cio.Opt{cio.WithStreams(in, cfg.Stdout, cfg.Stderr), cio.WithFIFODir(dir)}
	if cfg.Terminal {
		opts = append(opts, cio.WithTerminal)
	}
	return opts
}

// stdinReader notifies containerd when the caller's input ends: the shim holds the
// pipe open itself, so closing our end is not enough.
type stdinReader struct {
	r       io.Reader
	started chan struct{}   // closed when the process runs
	ctx     context.Context // done when the session is over
	cancel  context.CancelFunc
	pipe    string // path; set before started is closed
	close   func() // set before started is closed
}

func newStdinReader(r io.Reader) *stdinReader {
	s := &stdinReader{r: r, started: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

func (s *stdinReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil {
		s.finish()
	}
	return n, err
}

// finish has the shim close its end of the pipe, so that the process reads EOF after
// the remaining input. The shim opens the pipe for reading only after the process has
// started; if all writers had closed it by then, the open would block forever
// (fifo(7)). So finish keeps a writer open until the shim reads.
func (s *stdinReader) finish() {
	select {
	case <-s.started:
	case <-s.ctx.Done():
		return
	}
	w, err := fifo.OpenFifo(s.ctx, s.pipe, syscall.O_WRONLY, 0)
	if err != nil {
		return // the session is over
	}
	// In a new goroutine, because this one may still have data to write.
	go func() {
		s.close()
		_ = w.Close() // nothing was written to it
	}()
}

// closeStdin has the shim close a process's input. It tries again if containerd is
// unavailable: a process whose input seems to go on may wait for its end forever.
func (c *Client) closeStdin(ctx context.Context, proc containerd.Process) {
	err := proc.CloseIO(ctx, containerd.WithStdinCloser)
	for unavailable(err) && c.waitServing(ctx) {
		err = proc.CloseIO(ctx, containerd.WithStdinCloser)
	}
	if err != nil && !errdefs.IsNotFound(err) && ctx.Err() == nil {
		c.log.Warn("close the input of a session", "error", err)
	}
}

// removeTimeout bounds the removal of an exec, which a surviving child process can
// block.
const removeTimeout = 2 * time.Second

// Wait waits until the process has ended and its output has been written, removes
// the session from containerd, and returns the exit code. If the agent's task was
// killed, the exit code is 137 (128 + SIGKILL), and Killed returns true.
//
// When an output cannot be written, Wait kills the process and returns that error: a
// process whose output is lost must not go on as if it were read.
func (s *Session) Wait() (int, error) {
	st := s.waitExit()
	code, _, err := st.Result()
	done := make(chan struct{})
	go func() { s.proc.IO().Wait(); close(done) }()
	if s.out.failure() == nil {
		s.out.Drain(done)
	}
	if err == nil {
		code = s.checkKilled(code)
	}
	for _, f := range s.filters {
		if ferr := f.close(s.killed); ferr != nil {
			s.out.fail(f.name, ferr)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	if rerr := s.remove(ctx); err == nil && rerr != nil {
		s.c.log.Warn("remove session", "error", rerr)
	}
	if werr := s.out.failure(); werr != nil {
		return 0, werr
	}
	if err != nil {
		return 0, fmt.Errorf("wait for session: %w", err)
	}
	return int(code), nil
}

// waitExit waits for the end of the process, which it causes if a write fails.
func (s *Session) waitExit() containerd.ExitStatus {
	select {
	case st := <-s.exit:
		return st
	case <-s.out.failed:
	}
	ctx, cancel := context.WithTimeout(context.Background(), killedTimeout)
	defer cancel()
	if err := s.Signal(ctx, syscall.SIGKILL); err != nil && !errdefs.IsNotFound(err) {
		s.c.log.Warn("kill session", "error", err)
	}
	select {
	case st := <-s.exit:
		return st
	case <-ctx.Done():
		return *containerd.NewExitStatus(containerd.UnknownExitStatus, time.Time{}, ctx.Err())
	}
}

// killedTimeout bounds the wait for the end of a task that was killed, which a session
// may notice first.
const killedTimeout = 10 * time.Second

// checkKilled determines whether the task was killed, and the limits that were
// reached. It returns the session's exit code.
func (s *Session) checkKilled(code uint32) uint32 {
	const sigkill = 128 + uint32(syscall.SIGKILL)
	ctx, cancel := context.WithTimeout(s.c.withNamespace(context.Background()), killedTimeout)
	defer cancel()
	failed := code == execFailed && slices.ContainsFunc(s.filters, (*failureFilter).holds)
	if failed || code == sigkill && isExiting(int(s.task.Pid())) {
		if exit, err := s.task.Wait(ctx); err == nil {
			<-exit
		}
	}
	if failed || code == sigkill {
		s.killed = notStarted(ctx, s.task)
	}
	var err error
	if s.limits, err = s.c.limitsSince(ctx, s.task.ID(), s.spec, s.before); err != nil {
		s.c.log.Warn("check limits", "task", s.task.ID(), "error", err)
	}
	if s.killed {
		return sigkill
	}
	return code
}

// Killed reports, after Wait, whether the agent's task was killed during the session:
// because it reached a limit, by a removal, or by someone else.
func (s *Session) Killed() bool { return s.killed }

// LimitsReached returns, after Wait, the limits that the agent's task reached during
// the session. The exceptions of Client.LimitsReached apply.
func (s *Session) LimitsReached() []*LimitError { return s.limits }

// remove deletes the exec. The task may have been removed already, and the exec with it.
func (s *Session) remove(ctx context.Context) error {
	s.stdin.cancel()
	s.proc.IO().Cancel()
	_ = s.proc.IO().Close()
	_, err := s.proc.Delete(s.c.withNamespace(ctx), containerd.WithProcessKill)
	if err != nil && errdefs.IsNotFound(err) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// Resize sets the terminal's size, in cells.
func (s *Session) Resize(ctx context.Context, width, height uint16) error {
	return s.proc.Resize(s.c.withNamespace(ctx), uint32(width), uint32(height))
}

// Signal sends sig to the process.
func (s *Session) Signal(ctx context.Context, sig syscall.Signal) error {
	return s.proc.Kill(s.c.withNamespace(ctx), sig)
}

func randomID() string {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}
