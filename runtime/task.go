package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	runcopts "github.com/containerd/containerd/api/types/runc/options"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/known"
)

// Runtimes for an agent.
const (
	RuntimeRunsc = "runsc"
	RuntimeRunc  = "runc"

	shimRunsc = "io.containerd.runsc.v1"
	shimRunc  = "io.containerd.runc.v2"
)

// ErrTaken is wrapped if the name of a container or snapshot is in use.
var ErrTaken = errors.New("name already in use")

// Mount is a host path bound into a container.
type Mount struct {
	Source, Target string
	Writable       bool
	// Exclusive means that nothing else changes the files while the container exists.
	// gVisor then caches names and attributes; contents remain in the host's cache, so
	// that they survive the sandbox.
	Exclusive bool
}

// AgentConfig describes an agent's task. It must not contain secrets.
type AgentConfig struct {
	Name     string
	Runtime  string // RuntimeRunsc or RuntimeRunc
	NetNS    string // path of the network namespace
	Hostname string
	Env      []string // NAME=VALUE, overrides the image's
	Mounts   []Mount
	Tmpfs    []string // directories in memory, owned by the agent's user
	Init     []string // command of PID 1, which must be long-lived and reap children
	Memory   int64    // bytes; required
	CPUs     float64  // 0: no limit
	Pids     int64
	Disk     int64 // size limit of changes to the root file system, in bytes; runsc only
	Labels   map[string]string
	AddCaps  []string // additional capabilities, for isolation tests
}

// ProxyConfig describes a proxy's task. Its root is RootFS or, if that is nil,
// Dir/rootfs, which must exist.
type ProxyConfig struct {
	RootFS *RootFS // from PrepareProxyRootFS; the image's entrypoint precedes Args
	Name   string  // the bottle's; the container is Name + ProxySuffix
	// Front: the container is the one in front of the proxy, which has another user and
	// can connect to nothing but the proxy.
	Front    bool
	Dir      string
	NetNS    string
	Hostname string
	Args     []string
	Env      []string
	Mounts   []Mount
	CPUs     float64 // 0: no limit
	Memory   int64   // in bytes; 0: 256 MiB
	// Logger is a program that containerd's shim starts as "LOGGER proxy-log
	// LogFile" ("binary" logging). It reads the task's standard output and error
	// from descriptors 3 and 4 and closes 5 when it is ready. Empty: the shim itself
	// appends to LogFile, without a size limit.
	Logger  string
	LogFile string
	Labels  map[string]string
}

// Task is a created or running task.
type Task struct {
	ID   string
	task containerd.Task
	c    *Client
	exit <-chan containerd.ExitStatus
	spec *specs.Spec
}

// createTimeout bounds a create, in which runsc's shim can hang forever.
const createTimeout = 60 * time.Second

// withoutCancel returns a context in the client's namespace for calls that must not
// be interrupted: containerd or a shim continues a create after its caller has gone,
// which would race with the caller's cleanup.
func (c *Client) withoutCancel(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.withNamespace(ctx)), createTimeout)
}

// undoTimeout bounds the cleanup after a failed create.
const undoTimeout = 30 * time.Second

// CreateAgent creates the agent's container and task, not yet started, with a
// prepared root file system. The error wraps ErrTaken if the name is in use. After
// an error nothing is left behind; the root file system is removed too.
func (c *Client) CreateAgent(ctx context.Context, cfg AgentConfig, r *RootFS) (_ *Task, err error) {
	defer func() {
		if err == nil {
			return
		}
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if uerr := r.Remove(uctx); uerr != nil {
			c.log.Warn("undo create", "snapshot", r.key, "error", uerr)
		}
	}()
	o := c.agentOptions(ctx, cfg)
	if cfg.Runtime == RuntimeRunsc {
		if o.program, err = c.writeRunscProgram(cfg.Name); err != nil {
			return nil, err
		}
	}
	runtime, opts, err := c.runtimeOptions(ctx, cfg.Runtime, c.Dir(cfg.Name), o)
	if err != nil {
		return nil, err
	}
	runtime = c.ownShim(runtime, cfg.Name, o.program)
	rec := containers.Container{
		ID: cfg.Name, Labels: cfg.Labels, Image: r.image.Name(),
		Snapshotter: c.cfg.Snapshotter, SnapshotKey: r.key,
	}
	spec := agentSpec(cfg, r, c.cgroupPath(cfg.Name))
	if err := c.recordLimits(cfg.Name, spec, r); err != nil {
		return nil, err
	}
	return c.create(ctx, rec, runtime, opts, spec, taskIO{creator: c.agentIO(cfg.Name)})
}

// Control returns the path of a FIFO: what is written to it, PID 1 of an agent's task reads
// from its standard input.
func (c *Client) Control(name string) string { return filepath.Join(c.Dir(name), hosttask.ControlFile) }

// agentIO connects the standard input of an agent's first process with a FIFO, which the shim
// holds open. Its output is discarded.
func (c *Client) agentIO(name string) cio.Creator {
	fifo := c.Control(name)
	return func(string) (cio.IO, error) {
		if err := unix.Mkfifo(fifo, 0o600); err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("create %s: %w", fifo, err)
		}
		return discardIO{cio.Config{Stdin: fifo, Stdout: os.DevNull, Stderr: os.DevNull}}, nil
	}
}

// discardIO is a process's input and output in which this program takes no part.
type discardIO struct{ config cio.Config }

func (io discardIO) Config() cio.Config { return io.config }
func (discardIO) Cancel()               {}
func (discardIO) Wait()                 {}
func (discardIO) Close() error          { return nil }

// CreateProxy creates the proxy's container and task, not yet started.
func (c *Client) CreateProxy(ctx context.Context, cfg ProxyConfig) (*Task, error) {
	runtime, opts, err := c.runtimeOptions(ctx, RuntimeRunc, cfg.Dir, runscOptions{})
	if err != nil {
		return nil, err
	}
	id := cfg.id()
	rec := containers.Container{ID: id, Labels: cfg.Labels}
	if cfg.RootFS != nil {
		rec.Image, rec.Snapshotter, rec.SnapshotKey = cfg.RootFS.image.Name(), c.cfg.Snapshotter, cfg.RootFS.key
	}
	return c.create(ctx, rec, runtime, opts, proxySpec(cfg, c.cgroupPath(id)), proxyIO(cfg.Logger, cfg.LogFile))
}

// taskIO is the output of a task's first process.
type taskIO struct {
	creator cio.Creator
	logFile string // of a logger process; empty without one
}

// loggerCommand is the logger's first argument.
const loggerCommand = "proxy-log"

// proxyIO passes a single key-value pair to the logger, because the shim passes
// several in random order.
func proxyIO(logger, file string) taskIO {
	if logger == "" {
		return taskIO{creator: cio.LogFile(file)}
	}
	return taskIO{cio.BinaryIO(logger, map[string]string{loggerCommand: file}), file}
}

func (c *Client) create(ctx context.Context, rec containers.Container, runtime string, opts any, spec *specs.Spec, io taskIO) (*Task, error) {
	ctx, cancel := c.withoutCancel(ctx)
	defer cancel()
	created, err := c.createRecord(ctx, rec, runtime, opts, spec)
	if err != nil {
		return nil, err
	}
	t, err := c.createTask(ctx, created, spec, io)
	if err != nil {
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if uerr := c.removeOwn(uctx, rec); uerr != nil {
			c.log.Warn("undo create", "container", rec.ID, "error", uerr)
		}
		return nil, err
	}
	return t, nil
}

// createTask creates the task of a container, whose record has just been read or created.
func (c *Client) createTask(ctx context.Context, rec containers.Container, spec *specs.Spec, io taskIO) (*Task, error) {
	id, rctx := rec.ID, known.WithRecord(ctx, rec)
	cont, err := c.ctrd.LoadContainer(rctx, id)
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, err)
	}
	task, err := cont.NewTask(rctx, io.creator)
	if err != nil {
		return nil, fmt.Errorf("create task %s: %w", id, err)
	}
	// Waiting before the start cannot miss the exit. The wait outlives the launch
	// and ends with the connection.
	exit, err := c.waitExit(context.WithoutCancel(ctx), task)
	if err != nil {
		return nil, fmt.Errorf("wait for task %s: %w", id, err)
	}
	t := &Task{ID: id, task: task, c: c, exit: exit, spec: spec}
	if io.logFile != "" {
		if err := c.limitLogger(t, io.logFile); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// createRecord returns the record as containerd has stored it.
func (c *Client) createRecord(ctx context.Context, rec containers.Container, runtime string, opts any, spec *specs.Spec) (containers.Container, error) {
	any, err := typeurl.MarshalAny(opts)
	if err != nil {
		return rec, fmt.Errorf("encode options of %s: %w", rec.ID, err)
	}
	rec.Runtime = containers.RuntimeInfo{Name: runtime, Options: any}
	if rec.Spec, err = typeurl.MarshalAny(spec); err != nil {
		return rec, fmt.Errorf("encode spec of %s: %w", rec.ID, err)
	}
	created, err := c.ctrd.ContainerService().Create(ctx, rec)
	if err != nil {
		if errdefs.IsAlreadyExists(err) {
			return rec, fmt.Errorf("create container %s: %w", rec.ID, ErrTaken)
		}
		return rec, fmt.Errorf("create container %s: %w", rec.ID, err)
	}
	c.noteCreated(created)
	return created, nil
}

// runtimeOptions puts all state of the runtime into dir, so that it is removed
// with the bottle.
func (c *Client) runtimeOptions(ctx context.Context, name, dir string, o runscOptions) (string, any, error) {
	if err := checkRuntimeName(name); err != nil {
		return "", nil, err
	}
	if name == RuntimeRunc {
		return shimRunc, &runcopts.Options{Root: filepath.Join(dir, "runc")}, nil
	}
	conf := filepath.Join(dir, runscConfig)
	if err := writeRunscConfig(conf, filepath.Join(dir, "runsc"), o); err != nil {
		return "", nil, err
	}
	opts := &runtimeoptions.Options{TypeUrl: "io.containerd.runsc.v1.options", ConfigPath: conf}
	return c.runscShim(ctx, opts), opts, nil
}

// runscConfig is the name of runsc's configuration in a bottle's directory.
const runscConfig = "runsc.toml"

// Start starts a created task.
func (t *Task) Start(ctx context.Context) error {
	ctx, cancel := t.c.withoutCancel(ctx)
	defer cancel()
	if err := t.task.Start(ctx); err != nil {
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	t.c.noteStarted(t.ID)
	return nil
}

// RunningTask returns the running agent task called name, which another process has started.
// The error wraps ErrNotRunning if there is none.
func (c *Client) RunningTask(ctx context.Context, name string) (*Task, error) {
	ctx = c.withNamespace(ctx)
	cont, spec, err := c.loadContainer(ctx, name)
	if err != nil {
		return nil, err
	}
	task, err := c.loadRunning(ctx, cont)
	if err != nil {
		return nil, notRunning(err)
	}
	exit, err := c.waitExit(context.WithoutCancel(ctx), task)
	if err != nil {
		return nil, fmt.Errorf("wait for task %s: %w", name, err)
	}
	return &Task{ID: name, task: task, c: c, exit: exit, spec: spec}, nil
}

// PID returns the task's process ID on the host; under runsc, the sandbox's.
func (t *Task) PID() int { return int(t.task.Pid()) }

// Exited returns a channel that yields once, when the task has ended.
func (t *Task) Exited() <-chan containerd.ExitStatus { return t.exit }
