package bottle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/hostconfig"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/program"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/policy"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/teardown"
	"github.com/bot-bottle/bottle/workspace"
)

// Defaults of Config.
const (
	DefaultAddress   = hostconfig.DefaultAddress
	DefaultNamespace = hostconfig.DefaultNamespace

	defaultCNIPath = "/opt/cni/bin"
	defaultCNIConf = "/etc/bottle/cni"
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
	Progress func(supply.Progress)
	Notice   func(string)
	// Guest opens the program that runs in the sandbox as PID 1 and starts every session
	// (cmd/bottle/guest); nil: Program is used, which starts more slowly.
	Guest func() (io.ReadCloser, error)
	// ProxyProgram opens the program that is the built-in proxy, and the logger of either
	// proxy (cmd/bottle/proxyprogram); nil: Program is used, which needs more memory.
	ProxyProgram func() (io.ReadCloser, error)
	// Runsc opens the program that answers the shim's short calls in place of runsc
	// (cmd/bottle/runscprogram); nil: runsc is started for each of them.
	Runsc func() (io.ReadCloser, error)
	// Programs identifies the content of these programs together: bottles with the same one share
	// the files. Empty: each bottle has copies.
	Programs string
	// WarmSize is the width and height, in cells, of the terminals of agents that are started
	// ahead of their runs, which then change it; zero: 80 and 24.
	WarmSize [2]uint16
	// Owner is the user whose bottles and images are seen; 0: root, who sees all.
	Owner int
	// Rules bound what the caller may request; nil: nothing is bound.
	Rules *policy.Rules
	// Audit receives what bottles are started for whom; nil: nothing is written.
	Audit *audit.Log
	Log   *slog.Logger
}

func (c Config) guestProgram() program.Program {
	return program.Program{Open: c.Guest, Bottle: c.Program, Store: c.programs()}
}

func (c Config) programs() program.Store {
	return program.StoreIn(c.StateDir, c.Programs)
}

// cells reads a size of a terminal; 0: there is none.
func cells(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0
	}
	return uint16(n)
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
		Address:     or(hostconfig.Address, DefaultAddress),
		Namespace:   or(hostconfig.Namespace, DefaultNamespace),
		Snapshotter: getenv(hostconfig.Snapshotter),
		RunDir:      or(hostconfig.RunDir, hostconfig.DefaultRunDir),
		StateDir:    or(hostconfig.StateDir, hostconfig.DefaultStateDir),
		CNIPath:     or(hostconfig.CNIPath, defaultCNIPath),
		CNIConf:     or(hostconfig.CNIConf, defaultCNIConf),

		HostsDir:     getenv(hostconfig.HostsDir),
		BuildkitHost: getenv(hostconfig.Buildkit),
		WarmSize:     [2]uint16{cells(getenv("COLUMNS")), cells(getenv("LINES"))},
		BuildCache:   supply.DefaultBuildCache,
	}
}

// ErrNoContainerd is the error of Open if nothing responds at the socket.
var ErrNoContainerd = runtime.ErrNoContainerd

// Images returns the configuration of package images/supply.
func (c Config) Images() supply.Config {
	return supply.Config{
		Address: c.Address, Namespace: c.Namespace, Snapshotter: c.Snapshotter, StateDir: c.StateDir, HostsDir: c.HostsDir,
		BuildkitHost: c.BuildkitHost, BuildCache: c.BuildCache, Progress: c.Progress, Notice: c.Notice, Owner: c.Owner, Rules: c.Rules, Log: c.Log,
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

	sessions   *session.Manager
	workspaces *workspace.Store
	work       *agentwork.Manager
	teardown   *teardown.Manager
	// programs identifies the programs of bottles.
	programs func() (string, error)

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
var namespacePattern = lazyregexp.New(`^[A-Za-z0-9]+([._-][A-Za-z0-9]+)*$`)

const maxNamespace = 76 // bytes

// checkNamespace checks a containerd namespace, which is also a part of paths.
func checkNamespace(name string) error {
	reason := ""
	switch {
	case name == "net":
		reason = "it is reserved"
	case strings.Contains(name, names.Unusable):
		reason = fmt.Sprintf("gVisor can run nothing in a namespace with %q in its name", names.Unusable)
	case len(name) > maxNamespace:
		reason = fmt.Sprintf("too long: %d characters (max %d)", len(name), maxNamespace)
	case !namespacePattern().MatchString(name):
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
	if strings.Contains(cfg.RunDir, names.Unusable) {
		return nil, &hint.Error{
			Err:  fmt.Errorf("invalid run directory %s: gVisor can run nothing in a directory with %q in its path", cfg.RunDir, names.Unusable),
			Hint: "choose another one with BOTTLE_RUN_DIR",
		}
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
		Shim: cfg.Program, Runsc: cfg.Runsc, Programs: cfg.programs(), Owner: cfg.Owner, MayRemoveShared: cfg.Rules.Unbound,
	})
	if err != nil {
		return nil, connectHint(err)
	}
	net, err := cfg.network()
	if err != nil {
		return nil, errors.Join(err, rt.Close())
	}
	proxies := proxy.New(proxy.Config{
		Runtime: rt, Network: net, Program: cfg.Program, Log: cfg.Log, Rules: cfg.Rules,
		StateDir: filepath.Join(cfg.StateDir, cfg.Namespace),
	})
	e := &Engine{
		cfg: cfg, rt: rt, net: net, log: cfg.Log, proxies: proxies,
		workspaces: workspace.New(filepath.Join(cfg.StateDir, hostconfig.WorkspacesDir, cfg.Namespace)),
		images:     images.New(rt.Containerd(), cfg.Namespace, cfg.Snapshotter),
		sessions:   session.New(rt, cfg.Log),
		programs:   sync.OnceValues(cfg.programsSum),
	}
	e.teardown = teardown.New(teardown.Config{
		Runtime: rt, Network: net, Proxies: proxies, Workspaces: e.workspaces, RunDir: cfg.RunDir, StateDir: cfg.StateDir, Log: cfg.Log,
		At: func(point string) { e.hooks.at(point) },
		Removed: func(name string, err error) error {
			if strings.HasSuffix(name, names.WorkSuffix) { // a sandbox over the workspace of a bottle that does not run
				return err
			}
			return auditEnd(cfg.Audit, name, "removed", err)
		},
	})
	e.work = agentwork.New(agentwork.Config{
		Visible: cfg.mayRemove,
		Runtime: rt, Workspaces: e.workspaces, Images: e.Images(), Teardown: e.teardown, Program: cfg.guestProgram(), StateDir: cfg.StateDir,
		States: func(ctx context.Context) (map[string]string, error) {
			list, err := e.listBottles(ctx, true, rt.List)
			return states(list), err
		},
	})
	return e, nil
}

func connectHint(err error) error {
	switch {
	case errors.Is(err, runtime.ErrPermission):
		return &hint.Error{Err: err, Hint: "run bottle as root: sudo bottle …"}
	case errors.Is(err, runtime.ErrNoContainerd):
		return &hint.Error{Err: err, Hint: "start containerd (systemctl start containerd), install it (bottle setup), or set its socket with --address or CONTAINERD_ADDRESS"}
	}
	return err
}

// Explain adds a hint to an error whose cause is a containerd that does not answer.
func (e *Engine) Explain(err error) error {
	if !runtime.NoAnswer(err) || hint.Of(err) != "" {
		return err
	}
	return &hint.Error{Err: err, Hint: "check containerd (systemctl status containerd, journalctl -u containerd), then remove what is left with bottle cleanup"}
}

// Close closes the connection to containerd. Running bottles continue to run.
func (e *Engine) Close() error { return e.rt.Close() }

// Namespace returns the containerd namespace of bottles and images.
func (e *Engine) Namespace() string { return e.cfg.Namespace }

// dir returns the bottle's directory on tmpfs.
func (e *Engine) dir(name string) string { return e.rt.Dir(name) }

// stateDir returns the bottle's directory on disk.
func (e *Engine) stateDir(name string) string { return e.teardown.StateDir(name) }

// Images returns the images of the namespace.
func (e *Engine) Images() *supply.Images {
	return supply.New(e.cfg.Images(), e.images, func(ctx context.Context) (map[string][]string, error) {
		bottles, err := e.listChecked(ctx, true)
		if err != nil {
			return nil, err
		}
		users := map[string][]string{}
		for _, b := range bottles {
			users[b.Image] = append(users[b.Image], b.Name)
		}
		return users, nil
	})
}

// Work accesses the work of the engine's agents: it copies files, shows, applies and
// fetches changes, and lists and discards what is kept of bottles that are gone.
func (e *Engine) Work() *agentwork.Manager { return e.work }

// Proxies controls the proxies of the engine's bottles: it changes their policies, reads
// their logs, and watches them.
func (e *Engine) Proxies() *proxy.Manager { return e.proxies }

func (c Config) network() (*netns.Manager, error) {
	return netns.New(netns.Config{RunDir: c.RunDir, PluginDirs: filepath.SplitList(c.CNIPath), ConfDir: c.CNIConf, Log: c.Log})
}
