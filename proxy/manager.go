// Package proxy controls the egress proxies of running bottles: it keeps each one's
// policy, changes it, restarts the proxy and reads its log.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/policy"
	"github.com/bot-bottle/bottle/runtime"
)

// Config configures a Manager.
type Config struct {
	Runtime *runtime.Client
	Network *netns.Manager
	Program string // bottle's own executable, which writes the log of a restarted proxy
	Log     *slog.Logger
	// Rules bound what the caller may allow; nil: nothing is bound.
	Rules *policy.Rules
	// StateDir is the directory on disk that contains one directory for each bottle.
	StateDir string
}

// Manager controls the egress proxies of the bottles in one containerd namespace.
type Manager struct {
	rt       *runtime.Client
	net      *netns.Manager
	program  string
	stateDir string
	logger   *slog.Logger
	rules    *policy.Rules

	// StartTimeout bounds how long a proxy may take to answer its health check.
	// New sets 30 seconds.
	StartTimeout time.Duration
}

// New returns a Manager of a containerd namespace's proxies.
func New(cfg Config) *Manager {
	return &Manager{
		rt: cfg.Runtime, net: cfg.Network, program: cfg.Program, stateDir: cfg.StateDir, logger: cfg.Log, rules: cfg.Rules,
		StartTimeout: 30 * time.Second,
	}
}

func (m *Manager) bottleDir(name string) string { return m.rt.Dir(name) }

// Dir returns the directory of a proxy's files. Its subdirectory config is mounted into
// the proxy as a directory, so that the proxy sees a replaced file.
func (m *Manager) Dir(name string) string { return filepath.Join(m.bottleDir(name), "proxy") }

// FrontDir returns the directory of the files of the process in front of a proxy.
func (m *Manager) FrontDir(name string) string { return filepath.Join(m.bottleDir(name), "front") }

// process is the proxy of a bottle, or the process in front of it.
type process struct {
	id  string // of its container
	log string // path
}

func (m *Manager) proxy(name string) process { return process{names.Proxy(name), m.LogFile(name)} }
func (m *Manager) front(name string) process { return process{names.Front(name), m.FrontLogFile(name)} }

// injecting returns the process that inserts a bottle's secrets.
func (m *Manager) injecting(name string, s State) process {
	if s.Front() {
		return m.front(name)
	}
	return m.proxy(name)
}

// ProgramName is the name of the program of a bottle's proxy in its state directory.
const ProgramName = "proxy"

// Program returns the path of the program that is a bottle's built-in proxy, and the
// logger of either proxy: one of its own, or bottle's.
func (m *Manager) Program(name string) string {
	own := filepath.Join(m.stateDir, name, ProgramName)
	if _, err := os.Stat(own); err != nil {
		return m.program
	}
	return own
}

// configFile returns the path of the proxy's configuration.
func (m *Manager) configFile(name string, s State) string {
	return filepath.Join(m.Dir(name), "config", s.configFile())
}

// lock serializes changes of a bottle's policy, restarts of its proxy and the removal
// of the bottle. The error wraps runtime.ErrNotRunning if the bottle's directory does
// not exist.
func (m *Manager) lock(ctx context.Context, name string) (unlock func(), err error) {
	l, err := filelock.Create(ctx, filepath.Join(m.bottleDir(name), lockFile), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("lock %s: %w", name, runtime.ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return func() { _ = l.Release() }, nil // closing the file cannot fail in a way that matters
}

// Files in a bottle's directory. The mark of a bottle that is being removed, in which
// nothing is started any more, exists under another name before, because a removal must
// also succeed in a full run directory.
const (
	lockFile    = "proxy.lock"
	noMarkFile  = "not-removing"
	removedMark = "removing"
)

// Reserve creates the files in a new bottle's directory without which MarkRemoving would
// need space.
func Reserve(dir string) error {
	for _, name := range []string{lockFile, noMarkFile} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manager) removingFile(name string) string {
	return filepath.Join(m.bottleDir(name), removedMark)
}

// MarkRemoving waits for a running change or restart of the proxy and prevents later
// restarts.
func (m *Manager) MarkRemoving(ctx context.Context, name string) error {
	unlock, err := m.lock(ctx, name)
	if errors.Is(err, runtime.ErrNotRunning) {
		return nil // without a directory there is nothing to lock
	}
	if err != nil {
		return err
	}
	defer unlock()
	err = os.Rename(filepath.Join(m.bottleDir(name), noMarkFile), m.removingFile(name))
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if m.Removing(name) {
		return nil
	}
	// An earlier version of bottle has launched it.
	return os.WriteFile(m.removingFile(name), nil, 0o600)
}

// Removing reports whether MarkRemoving was called.
func (m *Manager) Removing(name string) bool {
	_, err := os.Lstat(m.removingFile(name))
	return err == nil
}
