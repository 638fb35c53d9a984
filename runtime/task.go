package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
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
)

// Names of the runtimes an agent can run under.
const (
	RuntimeRunsc = "runsc"
	RuntimeRunc  = "runc"

	shimRunsc = "io.containerd.runsc.v1"
	shimRunc  = "io.containerd.runc.v2"
)

// ErrTaken is wrapped when containerd already has a container of that name.
var ErrTaken = errors.New("the name is taken")

// Mount is a host path bound into a container.
type Mount struct {
	Source, Target string
	Writable       bool
}

// AgentConfig describes an agent's task. Nothing in it may be secret.
type AgentConfig struct {
	Name     string
	Runtime  string // RuntimeRunsc or RuntimeRunc
	NetNS    string // path of the network namespace
	Hostname string
	Env      []string // NAME=VALUE, over the image's
	Mounts   []Mount
	Tmpfs    []string // folders in memory, the agent's user's own
	Init     []string // arguments of PID 1: must live long and reap
	Memory   int64    // bytes; always a limit
	CPUs     float64  // 0: no limit
	Pids     int64
	Disk     int64 // bytes by which the root file system may grow; under runsc only
	Labels   map[string]string
	AddCaps  []string // beyond the defaults; tests of the isolation add some
}

// ProxyConfig describes a proxy's task. Its root is RootFS or, where that is nil,
// Dir/rootfs, which must exist.
type ProxyConfig struct {
	RootFS   *RootFS // of PrepareProxyRootFS; its entry point comes before Args
	Name     string  // the bottle's; the container is Name + ProxySuffix
	Dir      string
	NetNS    string
	Hostname string
	Args     []string
	Env      []string
	Mounts   []Mount
	CPUs     float64 // 0: no limit
	// Logger is run as "PROGRAM proxy-log FILE" for as long as the task has its
	// standard output and error, which are its descriptors 3 and 4; it closes 5
	// once it reads (containerd's shim logging, "binary"). Empty: the shim itself
	// appends to FILE, without a bound.
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
	// process is that of the spec, which sessions are like.
	process *specs.Process
}

// createTimeout bounds a create: runsc's shim can hang in it for ever.
const createTimeout = 60 * time.Second

// whole is for calls that must not be cut short: containerd, or a shim, that was
// told to create goes on when its caller has left, and would do so under the
// hands of whoever removes what it makes.
func whole(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), createTimeout)
}

// undoTimeout bounds the removal of what a failed create has made.
const undoTimeout = 30 * time.Second

// CreateAgent makes the agent's container and task over a prepared root file
// system, not yet started. The error wraps ErrTaken when the name is. After an
// error nothing of it is left, the root file system included.
func (c *Client) CreateAgent(ctx context.Context, cfg AgentConfig, r *RootFS) (_ *Task, err error) {
	defer func() {
		if err == nil {
			return
		}
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if uerr := c.RemoveSnapshot(uctx, r.key); uerr != nil {
			c.log.Warn("undo create", "snapshot", r.key, "error", uerr)
		}
	}()
	runtime, opts, err := c.runtimeOptions(cfg.Runtime, c.Dir(cfg.Name), cfg.Disk)
	if err != nil {
		return nil, err
	}
	rec := containers.Container{
		ID: cfg.Name, Labels: cfg.Labels, Image: r.image.Name(),
		Snapshotter: c.cfg.Snapshotter, SnapshotKey: r.key,
	}
	return c.create(ctx, rec, runtime, opts, agentSpec(cfg, r, c.cgroupPath(cfg.Name)), cio.NullIO)
}

// CreateProxy makes the proxy's container and task, not yet started.
func (c *Client) CreateProxy(ctx context.Context, cfg ProxyConfig) (*Task, error) {
	runtime, opts, err := c.runtimeOptions(RuntimeRunc, cfg.Dir, 0)
	if err != nil {
		return nil, err
	}
	id := cfg.Name + ProxySuffix
	rec := containers.Container{ID: id, Labels: cfg.Labels}
	if cfg.RootFS != nil {
		rec.Image, rec.Snapshotter, rec.SnapshotKey = cfg.RootFS.image.Name(), c.cfg.Snapshotter, cfg.RootFS.key
	}
	return c.create(ctx, rec, runtime, opts, proxySpec(cfg, c.cgroupPath(id)), proxyIO(cfg.Logger, cfg.LogFile))
}

// proxyIO names the one argument that the logger gets: the shim passes several on
// in any order.
func proxyIO(logger, file string) cio.Creator {
	if logger == "" {
		return cio.LogFile(file)
	}
	return cio.BinaryIO(logger, map[string]string{"proxy-log": file})
}

func (c *Client) create(ctx context.Context, rec containers.Container, runtime string, opts any, spec *specs.Spec, io cio.Creator) (*Task, error) {
	ctx, cancel := whole(c.in(ctx))
	defer cancel()
	if err := c.createRecord(ctx, rec, runtime, opts, spec); err != nil {
		return nil, err
	}
	t, err := c.createTask(ctx, rec, io)
	if err != nil {
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if uerr := c.Remove(uctx, rec.ID); uerr != nil {
			c.log.Warn("undo create", "container", rec.ID, "error", uerr)
		}
		return nil, err
	}
	t.process = spec.Process
	return t, nil
}

func (c *Client) createTask(ctx context.Context, rec containers.Container, io cio.Creator) (*Task, error) {
	cont, err := c.ctrd.LoadContainer(ctx, rec.ID)
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", rec.ID, err)
	}
	task, err := cont.NewTask(ctx, io)
	if err != nil {
		return nil, fmt.Errorf("create task %s: %w", rec.ID, err)
	}
	// A wait that begins before the start cannot miss the exit; it ends with
	// the connection, not with the launch.
	exit, err := c.exitOf(context.WithoutCancel(ctx), task)
	if err != nil {
		return nil, fmt.Errorf("wait for task %s: %w", rec.ID, err)
	}
	return &Task{ID: rec.ID, task: task, c: c, exit: exit}, nil
}

func (c *Client) createRecord(ctx context.Context, rec containers.Container, runtime string, opts any, spec *specs.Spec) error {
	any, err := typeurl.MarshalAny(opts)
	if err != nil {
		return fmt.Errorf("encode options of %s: %w", rec.ID, err)
	}
	rec.Runtime = containers.RuntimeInfo{Name: runtime, Options: any}
	if rec.Spec, err = typeurl.MarshalAny(spec); err != nil {
		return fmt.Errorf("encode spec of %s: %w", rec.ID, err)
	}
	if _, err := c.ctrd.ContainerService().Create(ctx, rec); err != nil {
		if errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("create container %s: %w", rec.ID, ErrTaken)
		}
		return fmt.Errorf("create container %s: %w", rec.ID, err)
	}
	return nil
}

// runtimeOptions keeps all state of the runtime itself in dir, so that it goes
// with the bottle.
func (c *Client) runtimeOptions(name, dir string, disk int64) (string, any, error) {
	if err := known(name); err != nil {
		return "", nil, err
	}
	if name == RuntimeRunc {
		return shimRunc, &runcopts.Options{Root: filepath.Join(dir, "runc")}, nil
	}
	conf := filepath.Join(dir, "runsc.toml")
	if err := writeRunscConfig(conf, filepath.Join(dir, "runsc"), disk); err != nil {
		return "", nil, err
	}
	return shimRunsc, &runtimeoptions.Options{TypeUrl: "io.containerd.runsc.v1.options", ConfigPath: conf}, nil
}

// writeRunscConfig has gVisor keep what the agent writes in a file beside the
// root file system, which is its default, of at most disk bytes; 0 is no limit.
func writeRunscConfig(file, root string, disk int64) error {
	bin, err := exec.LookPath("runsc")
	if err != nil {
		return fmt.Errorf("find runsc: %w", err)
	}
	text := fmt.Sprintf("binary_name = %q\nroot = %q\n[runsc_config]\nplatform = \"systrap\"\nnetwork = \"sandbox\"\n", bin, root)
	if disk > 0 {
		text += fmt.Sprintf("overlay2 = \"root:self,size=%d\"\n", disk)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write runsc's configuration: %w", err)
	}
	return nil
}

// Start runs a created task.
func (t *Task) Start(ctx context.Context) error {
	ctx, cancel := whole(t.c.in(ctx))
	defer cancel()
	if err := t.task.Start(ctx); err != nil {
		return fmt.Errorf("start task %s: %w", t.ID, err)
	}
	return nil
}

// PID of the task on the host: the sandbox's under runsc.
func (t *Task) PID() int { return int(t.task.Pid()) }

// Exited yields once, when the task has ended.
func (t *Task) Exited() <-chan containerd.ExitStatus { return t.exit }
