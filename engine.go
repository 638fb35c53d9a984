package bottle

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/shareddir"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
)

// Defaults of Config.
const (
	DefaultAddress   = "/run/containerd/containerd.sock"
	DefaultNamespace = "bottle"
	DefaultRunDir    = "/run/bottle"
	DefaultStateDir  = "/var/lib/bottle"
	DefaultCNIPath   = "/opt/cni/bin"
	DefaultCNIConf   = "/etc/bottle/cni"
)

// Config says which containerd and which folders an Engine works with.
type Config struct {
	Address     string
	Namespace   string
	Snapshotter string // empty: overlayfs
	RunDir      string // on tmpfs
	StateDir    string // on disk
	CNIPath     string // folders of CNI plugins, separated by colons
	CNIConf     string // folder that may hold conflists in place of the embedded ones
	// Program is bottle's own executable, mounted into the proxy's container;
	// empty: the one that runs. A program that uses this package sets it.
	Program string
	// BuildkitHost is the address of a buildkitd that builds images; empty: they
	// are built in this process, and what that keeps is bounded by BuildCache, in
	// bytes.
	BuildkitHost string
	BuildCache   int64
	// HostsDir holds a hosts.toml for each registry that needs one; empty: the
	// one of containerd's own tools, if it is there.
	HostsDir string
	// Progress is told of images that are pulled, pushed or made, and Notice of
	// what was left out of one; both may be nil.
	Progress func(ImageProgress)
	Notice   func(string)
	// Guest is the program that runs inside as PID 1 and begins every session
	// (cmd/bottle/guest); empty: Program does it, more slowly.
	Guest []byte
	Log   *slog.Logger
}

// ConfigFromEnv reads the variables that containerd's and CNI's own tools read,
// and bottle's.
func ConfigFromEnv(getenv func(string) string) Config {
	or := func(name, fallback string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return fallback
	}
	return Config{
		Address:     or("CONTAINERD_ADDRESS", DefaultAddress),
		Namespace:   or("CONTAINERD_NAMESPACE", DefaultNamespace),
		Snapshotter: getenv("CONTAINERD_SNAPSHOTTER"),
		RunDir:      or("BOTTLE_RUN_DIR", DefaultRunDir),
		StateDir:    or("BOTTLE_STATE_DIR", DefaultStateDir),
		CNIPath:     or("CNI_PATH", DefaultCNIPath),
		CNIConf:     or("BOTTLE_CNI_CONF", DefaultCNIConf),

		HostsDir:     getenv("BOTTLE_HOSTS_DIR"),
		BuildkitHost: getenv("BUILDKIT_HOST"),
		BuildCache:   DefaultBuildCache,
	}
}

// Engine is one host's containerd and networks, as bottle uses them. It holds
// no state of its own: what bottles there are is read from containerd's labels
// and from names.
type Engine struct {
	cfg     Config
	rt      *runtime.Client
	images  *images.Store
	net     *netns.Manager
	proxies *proxy.Manager
	log     *slog.Logger

	addCaps []string // for the agent; set by tests only
	// fault, set by tests, is asked before and after each step of a launch.
	fault func(step string, done bool) error
}

// Open connects to containerd. Close must be called.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Namespace == "net" {
		return nil, &hint.Error{Err: errors.New("the containerd namespace cannot be called net"), Hint: "choose another with --namespace or CONTAINERD_NAMESPACE"}
	}
	if cfg.Program == "" {
		program, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find bottle's own program: %w", err)
		}
		cfg.Program = program
	}
	rt, err := runtime.Connect(ctx, runtime.Config{
		Address: cfg.Address, Namespace: cfg.Namespace, Snapshotter: cfg.Snapshotter,
		RunDir: cfg.RunDir, Log: cfg.Log,
	})
	if err != nil {
		return nil, connectHint(err)
	}
	net, err := netns.New(netns.Config{
		RunDir: cfg.RunDir, PluginDirs: filepath.SplitList(cfg.CNIPath), ConfDir: cfg.CNIConf, Log: cfg.Log,
	})
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	return &Engine{
		cfg: cfg, rt: rt, net: net, log: cfg.Log,
		proxies: proxy.New(proxy.Config{
			Runtime: rt, Network: net, Program: cfg.Program, Log: cfg.Log,
			StateDir: filepath.Join(cfg.StateDir, cfg.Namespace),
		}),
		images: images.New(rt.Containerd(), cfg.Namespace, cfg.Snapshotter),
	}, nil
}

func connectHint(err error) error {
	switch {
	case errors.Is(err, runtime.ErrPermission):
		return &hint.Error{Err: err, Hint: "run bottle as root: sudo bottle …"}
	case errors.Is(err, runtime.ErrNoContainerd):
		return &hint.Error{Err: err, Hint: "start containerd (systemctl start containerd), or name its socket with --address or CONTAINERD_ADDRESS"}
	}
	return err
}

// Close ends the connection to containerd. Bottles that run go on.
func (e *Engine) Close() error { return e.rt.Close() }

// Namespace is the containerd namespace that bottles and images are in.
func (e *Engine) Namespace() string { return e.cfg.Namespace }

// dir is the bottle's folder on tmpfs; stateDir its folder on disk.
func (e *Engine) dir(name string) string { return e.rt.Dir(name) }

func (e *Engine) stateDir(name string) string {
	return filepath.Join(e.cfg.StateDir, e.cfg.Namespace, name)
}

// Taken returns every name that a new bottle may not have: containers of the
// namespace, and folders that a bottle left behind.
func (e *Engine) Taken(ctx context.Context) (map[string]bool, error) {
	taken, err := e.rt.IDs(ctx)
	if err != nil {
		return nil, err
	}
	dirs, err := e.folders()
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		taken[d] = true
	}
	return taken, nil
}

// folders lists the names that have a folder on tmpfs.
func (e *Engine) folders() ([]string, error) { return foldersIn(e.dir("")) }

func foldersIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list bottles' folders: %w", err)
	}
	var names []string
	for _, d := range entries {
		if d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			names = append(names, d.Name())
		}
	}
	return names, nil
}

// Image tells what an image in containerd's store is.
func (e *Engine) Image(ctx context.Context, ref string) (plan.ImageInfo, error) {
	img, err := e.images.Lookup(ctx, ref)
	if errors.Is(err, images.ErrMissing) || errors.Is(err, images.ErrIncomplete) { // to be pulled, either
		return plan.ImageInfo{}, fmt.Errorf("%w: %w", plan.ErrImageMissing, err)
	}
	if err != nil {
		return plan.ImageInfo{}, err
	}
	return plan.ImageInfo{
		Ref: img.Ref, Digest: img.Digest, Platform: img.Platform, User: img.Config.User,
		WorkDir: img.Config.WorkingDir, Env: img.Config.Env, Entrypoint: img.Config.Entrypoint, Cmd: img.Config.Cmd,
		Labels: img.Config.Labels,
	}, nil
}

// Runtime checks that a task can run under the runtime called name: its program and
// its shim are found and answer.
func (e *Engine) Runtime(ctx context.Context, name string) error {
	scratch, err := e.scratch()
	if err != nil {
		return err
	}
	defer func() {
		_ = os.RemoveAll(scratch) // on tmpfs; cleanup finds it otherwise
		e.removeEmpty()
	}()
	return RuntimeHint(e.rt.CheckRuntime(ctx, name, scratch))
}

// Version returns containerd's version.
func (e *Engine) Version(ctx context.Context) (string, error) {
	v, err := e.rt.Containerd().Version(ctx)
	return v.Version, err
}

// RuntimeHint adds the fix to an error about a missing runtime.
func RuntimeHint(err error) error {
	switch {
	case errors.Is(err, runtime.ErrNoRunsc):
		return &hint.Error{Err: err, Hint: "install gVisor's runsc and containerd-shim-runsc-v1 into /usr/local/bin (https://gvisor.dev/docs/user_guide/install/), or choose --runtime runc and lose its isolation"}
	case errors.Is(err, runtime.ErrNoRunc):
		return &hint.Error{Err: err, Hint: "install runc (on Debian: apt install runc)"}
	case errors.Is(err, runtime.ErrNoShim):
		return &hint.Error{Err: err, Hint: "install the shim where containerd's own PATH finds it (usually /usr/local/bin)"}
	}
	return err
}

// scratch creates a directory on tmpfs that its caller removes. Secrets may pass
// through such directories, so a run directory on disk is refused.
func (e *Engine) scratch() (string, error) {
	if err := e.makeRunDir(); err != nil {
		return "", err
	}
	dir := filepath.Join(e.dir(""), ".scratch-"+rand.Text())
	if err := shareddir.Mkdir(dir, 0o700); err != nil {
		return "", fmt.Errorf("create a scratch directory: %w", err)
	}
	return dir, nil
}

// makeRunDir creates the run directory and checks that it is on tmpfs.
func (e *Engine) makeRunDir() error {
	if err := shareddir.MkdirAll(e.dir(""), 0o700); err != nil {
		return runDirHint(fmt.Errorf("create the run directory: %w", err))
	}
	var st unix.Statfs_t
	err := unix.Statfs(e.cfg.RunDir, &st)
	if errors.Is(err, unix.ENOENT) { // the last bottle has removed it in between
		err = unix.Statfs(filepath.Dir(e.cfg.RunDir), &st)
	}
	if err != nil {
		return fmt.Errorf("check the run directory %s: %w", e.cfg.RunDir, err)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return &hint.Error{
			Err:  fmt.Errorf("the run directory %s is not on tmpfs", e.cfg.RunDir),
			Hint: "set BOTTLE_RUN_DIR to a directory on tmpfs, or mount one: mount -t tmpfs -o mode=700 tmpfs " + e.cfg.RunDir,
		}
	}
	return nil
}

func runDirHint(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return &hint.Error{Err: err, Hint: "run bottle as root: sudo bottle …"}
	}
	return err
}

// Network tells what networks a launch would make on this host.
func (e *Engine) Network(ctx context.Context) (plan.Network, error) {
	info, err := e.net.Check(ctx)
	if err != nil {
		return plan.Network{}, withFixes(err)
	}
	return plan.Network{
		Internal: info.Internal, Egress: info.Egress, Bridge: info.Bridge,
		Changes: append([]string{}, slices.Sorted(slices.Values(sentences(info.Changes)))...), Warnings: sentences(info.Warnings),
	}, nil
}

func sentences(findings []netns.Finding) []string {
	var out []string
	for _, f := range findings {
		out = append(out, f.String())
	}
	return out
}

// withFixes adds to each problem that err joins the hint how to fix it.
func withFixes(err error) error {
	var all hint.Problems
	for _, m := range hint.Split(err) {
		if p, ok := errors.AsType[*netns.Problem](m); ok {
			m = &hint.Error{Err: m, Hint: p.Fix}
		}
		all = append(all, m)
	}
	return all.Err()
}

// teardownTime bounds a removal, which runs on a context of its own. It has room
// for a task that is killed, then forced, then killed again (runtime, killTimeout).
const teardownTime = 2 * time.Minute

func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
}
