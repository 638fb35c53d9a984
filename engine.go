package bottle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/scratch"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
)

// Defaults of Config.
const (
	DefaultAddress   = "/run/containerd/containerd.sock"
	DefaultNamespace = "bottle"

	defaultRunDir   = "/run/bottle"
	defaultStateDir = "/var/lib/bottle"
	defaultCNIPath  = "/opt/cni/bin"
	defaultCNIConf  = "/etc/bottle/cni"
)

// Config selects the containerd and the directories that an Engine works with.
type Config struct {
	Address     string
	Namespace   string
	Snapshotter string // empty: overlayfs
	RunDir      string // on tmpfs
	StateDir    string // on disk
	CNIPath     string // directories of CNI plugins, separated by colons
	CNIConf     string // directory of conflists that override the embedded ones
	// Program is bottle's own executable, which is mounted into the proxy's container;
	// empty: the running executable. Other programs that use this package must set it.
	Program string
	// BuildkitHost is the address of a buildkitd that builds images; empty: images are
	// built in this process, and BuildCache limits its build cache, in bytes.
	BuildkitHost string
	BuildCache   int64
	// HostsDir contains a hosts.toml for each registry that needs one; empty: the
	// directory of containerd's own tools, if it exists.
	HostsDir string
	// Progress receives the progress of images being pulled, pushed or created, and
	// Notice what was left out of one, and warnings of a launch; both may be nil.
	Progress func(ImageProgress)
	Notice   func(string)
	// Guest is the program that runs in the sandbox as PID 1 and starts every session
	// (cmd/bottle/guest); empty: Program is used, which starts more slowly.
	Guest []byte
	Log   *slog.Logger
}

// ConfigFromEnv reads bottle's environment variables and those of the tools of
// containerd and CNI.
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
		RunDir:      or("BOTTLE_RUN_DIR", defaultRunDir),
		StateDir:    or("BOTTLE_STATE_DIR", defaultStateDir),
		CNIPath:     or("CNI_PATH", defaultCNIPath),
		CNIConf:     or("BOTTLE_CNI_CONF", defaultCNIConf),

		HostsDir:     getenv("BOTTLE_HOSTS_DIR"),
		BuildkitHost: getenv("BUILDKIT_HOST"),
		BuildCache:   DefaultBuildCache,
	}
}

// Engine manages the bottles of one host. It has no state of its own: the existing
// bottles are read from containerd's labels and from names.
type Engine struct {
	cfg     Config
	rt      *runtime.Client
	images  *images.Store
	net     *netns.Manager
	proxies *proxy.Manager
	log     *slog.Logger

	hooks testHooks
}

// testHooks change launches in tests; setHooks in the tests sets them.
type testHooks struct {
	// addCaps are additional capabilities of the agent.
	addCaps []string
	// step is called before and after each step of a launch; an error fails the step.
	step func(step string, done bool) error
	// removal is called at points of a removal.
	removal func(point string)
}

func (h testHooks) at(point string) {
	if h.removal != nil {
		h.removal(point)
	}
}

// namespacePattern and maxNamespace are containerd's rule for identifiers
// (containerd/v2/pkg/identifiers).
var namespacePattern = regexp.MustCompile(`^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`)

const maxNamespace = 76 // bytes

// checkNamespace checks a containerd namespace, which is also a part of paths.
func checkNamespace(name string) error {
	reason := ""
	switch {
	case name == "net":
		reason = "it is reserved"
	case len(name) > maxNamespace:
		reason = fmt.Sprintf("too long: %d characters (max %d)", len(name), maxNamespace)
	case !namespacePattern.MatchString(name):
		reason = "expected letters and digits, separated by single '.', '_' or '-'"
	default:
		return nil
	}
	return &hint.Error{
		Err:  fmt.Errorf("invalid containerd namespace %q: %s", name, reason),
		Hint: "choose another one with --namespace or CONTAINERD_NAMESPACE",
	}
}

// Open connects to containerd. The caller must call Close.
func Open(ctx context.Context, cfg Config) (*Engine, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := checkNamespace(cfg.Namespace); err != nil {
		return nil, err
	}
	if cfg.Program == "" {
		program, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find executable: %w", err)
		}
		cfg.Program = program
	}
	rt, err := runtime.Connect(ctx, runtime.Config{
		Address: cfg.Address, Namespace: cfg.Namespace, Snapshotter: cfg.Snapshotter,
		RunDir: cfg.RunDir, StateDir: filepath.Join(cfg.StateDir, cfg.Namespace), Log: cfg.Log,
		Shim: cfg.Program,
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
		return &hint.Error{Err: err, Hint: "start containerd (systemctl start containerd), or set its socket with --address or CONTAINERD_ADDRESS"}
	}
	return err
}

// Close closes the connection to containerd. Running bottles continue to run.
func (e *Engine) Close() error { return e.rt.Close() }

// Namespace returns the containerd namespace of bottles and images.
func (e *Engine) Namespace() string { return e.cfg.Namespace }

// dir returns the bottle's directory on tmpfs.
func (e *Engine) dir(name string) string { return e.rt.Dir(name) }

// stateDir returns the bottle's directory on disk.
func (e *Engine) stateDir(name string) string {
	return filepath.Join(e.cfg.StateDir, e.cfg.Namespace, name)
}

// Taken returns every name that a new bottle cannot have: those of the namespace's
// containers, and of directories and processes that a bottle left behind.
func (e *Engine) Taken(ctx context.Context) (map[string]bool, error) {
	taken, err := e.rt.IDs(ctx)
	if err != nil {
		return nil, err
	}
	dirs, err := bottleDirs(e.dir(""))
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		taken[d] = true
	}
	strays, err := e.rt.Strays()
	if err != nil {
		return nil, err
	}
	for name := range strays {
		taken[name] = true
	}
	return taken, nil
}

// bottleDirs returns the names of the bottles that have a directory in dir.
func bottleDirs(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list bottles' directories: %w", err)
	}
	var names []string
	for _, d := range entries {
		if d.IsDir() && !strings.HasPrefix(d.Name(), ".") {
			names = append(names, d.Name())
		}
	}
	return names, nil
}

// Image describes an image in containerd's store.
func (e *Engine) Image(ctx context.Context, ref string) (plan.ImageInfo, error) {
	img, err := e.images.Lookup(ctx, ref)
	if errors.Is(err, images.ErrMissing) || errors.Is(err, images.ErrIncomplete) { // both are pulled
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

// Runtime checks that a task can run under the named runtime: that its program and its
// shim exist and answer. It works in a directory on tmpfs, which it removes.
func (e *Engine) Runtime(ctx context.Context, name string) error {
	if err := e.makeRunDir(); err != nil {
		return err
	}
	dir, err := scratch.New(ctx, e.dir(""))
	if err != nil {
		return err
	}
	err = RuntimeHint(e.rt.CheckRuntime(ctx, name, dir.Path))
	err = errors.Join(err, dir.Close())
	e.removeEmpty()
	return err
}

// ShimWarning returns, after Runtime, why agents under runsc would not survive that
// containerd stops; nil if they do.
func (e *Engine) ShimWarning() error { return e.rt.CheckShim() }

// Version returns containerd's version.
func (e *Engine) Version(ctx context.Context) (string, error) {
	v, err := e.rt.Containerd().Version(ctx)
	return v.Version, err
}

// RuntimeHint adds a hint to an error about a missing runtime.
func RuntimeHint(err error) error {
	switch {
	case errors.Is(err, runtime.ErrNoRunsc):
		return &hint.Error{Err: err, Hint: "install gVisor's runsc and containerd-shim-runsc-v1 into /usr/local/bin (https://gvisor.dev/docs/user_guide/install/), or use --runtime runc, which gives up gVisor's isolation"}
	case errors.Is(err, runtime.ErrNoRunc):
		return &hint.Error{Err: err, Hint: "install runc (on Debian: apt install runc)"}
	case errors.Is(err, runtime.ErrNoShim):
		return &hint.Error{Err: err, Hint: "install the shim where containerd's own PATH finds it (usually /usr/local/bin)"}
	}
	return err
}

// makeRunDir creates the run directory and checks that it is on tmpfs: it will contain
// secrets, which must not be written to disk.
func (e *Engine) makeRunDir() error {
	if err := shareddir.MkdirAll(e.dir(""), 0o700); err != nil {
		return runDirHint(fmt.Errorf("create run directory: %w", err))
	}
	var st unix.Statfs_t
	err := unix.Statfs(e.cfg.RunDir, &st)
	if errors.Is(err, unix.ENOENT) { // removed meanwhile with the last bottle
		err = unix.Statfs(filepath.Dir(e.cfg.RunDir), &st)
	}
	if err != nil {
		return fmt.Errorf("check run directory %s: %w", e.cfg.RunDir, err)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return &hint.Error{
			Err:  fmt.Errorf("run directory %s is not on tmpfs", e.cfg.RunDir),
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

// Network describes the networks that a launch would create on this host.
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

// withFixes adds its fix as a hint to each problem joined in err.
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

// removeTimeout bounds a removal, which runs on a context of its own. It allows for a
// task that is killed, then forcibly deleted, then killed again (runtime, killTimeout).
const removeTimeout = 2 * time.Minute

// detached returns a context for cleanup that is not cancelled with ctx.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
}
