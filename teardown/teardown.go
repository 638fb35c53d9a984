// Package teardown finds and removes everything that belongs to a bottle. The same code
// serves the end of a run, a launch that failed, and what a crash has left: it works from
// the bottle's name alone, is idempotent, and is safe when several processes remove the
// same bottle.
//
// A launch claims its name here, because a removal must distinguish a bottle that is
// being launched from a leftover, and a later bottle from the one it was asked to remove.
package teardown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/workspace"
)

// Config configures a Manager.
type Config struct {
	Runtime *runtime.Client
	Network *netns.Manager
	Proxies *proxy.Manager
	// Workspaces outlive their bottles.
	Workspaces *workspace.Store
	// RunDir is on tmpfs and StateDir on disk. Each contains a directory for each
	// containerd namespace.
	RunDir, StateDir string
	Log              *slog.Logger
	// At is called at points of a removal, for tests; it may be nil.
	At func(point string)
	// Removed is called after the removal of a bottle, with its error, and returns the
	// error of the removal; it may be nil.
	Removed func(name string, err error) error
}

// Manager removes the bottles of one containerd namespace. It has no state: what exists
// is read from the host.
type Manager struct {
	rt      *runtime.Client
	net     *netns.Manager
	proxies *proxy.Manager
	work    *workspace.Store
	cfg     Config
	log     *slog.Logger
}

// New returns a Manager of a containerd namespace's bottles.
func New(cfg Config) *Manager {
	if cfg.At == nil {
		cfg.At = func(string) {}
	}
	if cfg.Removed == nil {
		cfg.Removed = func(_ string, err error) error { return err }
	}
	return &Manager{rt: cfg.Runtime, net: cfg.Network, proxies: cfg.Proxies, work: cfg.Workspaces, cfg: cfg, log: cfg.Log}
}

// dir returns the bottle's directory on tmpfs.
func (m *Manager) dir(name string) string { return m.rt.Dir(name) }

// WorkMount returns the directory that a bottle's workspace is mounted on. It is in the
// bottle's directory on tmpfs, which only root can enter.
func (m *Manager) WorkMount(name string) string { return filepath.Join(m.dir(name), "workspace") }

// StateDir returns the bottle's directory on disk.
func (m *Manager) StateDir(name string) string {
	return filepath.Join(m.cfg.StateDir, m.rt.Namespace(), name)
}

// Names returns every name that a new bottle cannot have: those of the namespace's
// containers, of directories and processes that a bottle left behind, and of workspaces.
func (m *Manager) Names(ctx context.Context) (map[string]bool, error) {
	dirs, err := bottleDirs(m.dir(""))
	if err != nil {
		return nil, err
	}
	// The host's processes are read while containerd answers.
	var strays map[string]bool
	var serr error
	searched := make(chan struct{})
	go func() {
		defer close(searched)
		strays, serr = m.rt.StrayNames()
	}()
	taken, err := m.rt.IDs(ctx, dirs...)
	<-searched
	if err = errors.Join(err, serr); err != nil {
		return nil, err
	}
	work, err := m.work.Names()
	if err != nil {
		return nil, err
	}
	for _, d := range append(dirs, work...) {
		taken[d] = true
	}
	maps.Copy(taken, strays)
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
		if d.IsDir() && isBottleDir(d.Name()) {
			names = append(names, d.Name())
		}
	}
	return names, nil
}

// isBottleDir reports whether a directory of the name is a bottle's, and not one that a
// launch or a removal uses.
func isBottleDir(name string) bool { return name != "" && !strings.HasPrefix(name, ".") }

// MakeRunDir creates the run directory and checks that it is on tmpfs: it will contain
// secrets, which must not be written to disk.
func (m *Manager) MakeRunDir() error {
	if err := shareddir.MkdirAll(m.dir(""), 0o700); err != nil {
		return runDirHint(fmt.Errorf("create run directory: %w", err))
	}
	var st unix.Statfs_t
	err := unix.Statfs(m.cfg.RunDir, &st)
	if errors.Is(err, unix.ENOENT) { // removed meanwhile with the last bottle
		err = unix.Statfs(filepath.Dir(m.cfg.RunDir), &st)
	}
	if err != nil {
		return fmt.Errorf("check run directory %s: %w", m.cfg.RunDir, err)
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return &hint.Error{
			Err:  fmt.Errorf("run directory %s is not on tmpfs", m.cfg.RunDir),
			Hint: "set BOTTLE_RUN_DIR to a directory on tmpfs, or mount one: mount -t tmpfs -o mode=700 tmpfs " + m.cfg.RunDir,
		}
	}
	return nil
}

// A run directory with less than this free is full for a launch, in bytes and inodes: its
// steps need more.
const (
	runDirReserve  = 64 << 10
	runDirReserveN = 32
)

// ExplainFull adds to the error of a launch that the run directory is full, if it is.
// Few of the programs that write there report that as the cause of their failure.
func (m *Manager) ExplainFull(err error) error {
	var st unix.Statfs_t
	if serr := unix.Statfs(m.cfg.RunDir, &st); serr != nil {
		return err // it does not exist
	}
	what := ""
	switch {
	case st.Blocks > 0 && st.Bavail*uint64(st.Bsize) < runDirReserve:
		what = "no space left"
	case st.Files > 0 && st.Ffree < runDirReserveN:
		what = "no inodes left"
	default:
		return err
	}
	return &hint.Error{
		Err:  fmt.Errorf("run directory %s: %s: %w", m.cfg.RunDir, what, err),
		Hint: "remove bottles (bottle cleanup), or enlarge its file system, for example: mount -o remount,size=64M,nr_inodes=0 " + m.cfg.RunDir,
	}
}

func runDirHint(err error) error {
	if errors.Is(err, os.ErrPermission) {
		return &hint.Error{Err: err, Hint: "run bottle as root: sudo bottle …"}
	}
	return err
}

// Prune removes the directories that all bottles share, unless a bottle is left in them,
// and what a killed removal has left.
func (m *Manager) Prune() {
	removed, _ := filepath.Glob(m.dir(removedPrefix + "*")) // the pattern is valid
	for _, dir := range removed {
		_ = os.RemoveAll(dir) // on tmpfs, and empty; the next removal tries again
	}
	shareddir.Prune(m.dir(""), m.cfg.RunDir, m.StateDir(""), m.cfg.StateDir)
}

// timeout bounds a removal, which runs on a context of its own. It allows for a task
// that is killed, then forcibly deleted, then killed again (runtime, killTimeout).
const timeout = 2 * time.Minute

// Detached returns a context for a removal that is not cancelled with ctx.
func Detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), timeout)
}
