// Package agentwork accesses the work of agents: their copies of a user's directory. It copies
// files, shows and applies changes and fetches commits, from running bottles and from the
// workspaces of those that are gone. Package worktree does so with any sandbox, and
// package workspace stores the files; this package finds or starts the sandbox.
package agentwork

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/program"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/teardown"
	"github.com/bot-bottle/bottle/workspace"
	"github.com/bot-bottle/bottle/worktree"
)

// Config configures a Manager.
type Config struct {
	Runtime    *runtime.Client
	Workspaces *workspace.Store
	Images     *supply.Images
	Teardown   *teardown.Manager
	Program    program.Program
	StateDir   string // on disk; its file system contains the workspaces
	// States returns the state of every bottle's agent, by the bottle's name.
	States func(context.Context) (map[string]string, error)
	// Visible reports whether the user sees the work of a bottle; nil: of all.
	Visible func(name string) bool
}

// Manager accesses the work of the agents of one containerd namespace.
type Manager struct {
	rt         *runtime.Client
	workspaces *workspace.Store
	images     *supply.Images
	teardown   *teardown.Manager
	program    program.Program
	stateDir   string
	states     func(context.Context) (map[string]string, error)
	visible    func(name string) bool
}

// New returns a Manager.
func New(cfg Config) *Manager {
	return &Manager{
		rt: cfg.Runtime, workspaces: cfg.Workspaces, images: cfg.Images, teardown: cfg.Teardown,
		program: cfg.Program, stateDir: cfg.StateDir, states: cfg.States, visible: cfg.Visible,
	}
}

type (
	// Limits bound what an agent can make the host store, read and wait for when its
	// work is brought back.
	Limits = worktree.Limits
	// Change is a file that an agent has changed.
	Change = worktree.Change
	// Fetched is what was fetched from one repository.
	Fetched = worktree.Fetched
	// Summary counts what an agent has done.
	Summary = worktree.Summary
)

// DefaultLimits are the defaults of Limits.
var DefaultLimits = worktree.DefaultLimits

// Options are the options of the functions that exchange files with a bottle.
type Options struct {
	Caller caller.Caller // whose rights are used on the host
	Limits Limits
	Notice func(string) // receives sentences about what is left out; may be nil
}

// CopyOut copies a file or a directory of a bottle to the host, as docker cp does: see
// worktree.Work.CopyOut.
func (m *Manager) CopyOut(ctx context.Context, name, path, dest string, o Options) error {
	return m.withWork(ctx, name, o, func(w *worktree.Work) error { return w.CopyOut(ctx, path, dest) })
}

// CopyIn copies a file or a directory of the host into a bottle.
func (m *Manager) CopyIn(ctx context.Context, name, source, path string, o Options) error {
	return m.withWork(ctx, name, o, func(w *worktree.Work) error { return w.CopyIn(ctx, source, path) })
}

// Diff writes what the agent has changed in its copy of a directory: see
// worktree.Work.Diff.
func (m *Manager) Diff(ctx context.Context, name string, out io.Writer, stat bool, o Options) error {
	return m.withCopy(ctx, name, o, func(w *worktree.Work) error {
		_, err := w.Diff(ctx, out, stat, false)
		return err
	})
}

// Apply changes the user's files as the agent has changed its copy: see
// worktree.Work.Apply.
func (m *Manager) Apply(ctx context.Context, name string, dryRun bool, o Options) (changes []Change, err error) {
	fetched, err := m.fetching(ctx, name)
	if err != nil {
		return nil, err
	}
	err = m.withCopy(ctx, name, o, func(w *worktree.Work) error {
		changes, err = w.Apply(ctx, dryRun)
		return err
	})
	if err != nil || dryRun {
		return changes, err
	}
	return changes, fetched()
}

// Fetch brings the agent's commits, and its uncommitted work as one more commit, to a
// branch of the user's repository: see worktree.Work.Fetch.
func (m *Manager) Fetch(ctx context.Context, name, branch string, o Options) (list []Fetched, err error) {
	fetched, err := m.fetching(ctx, name)
	if err != nil {
		return nil, err
	}
	err = m.withCopy(ctx, name, o, func(w *worktree.Work) error {
		list, err = w.Fetch(ctx, name, branch)
		return err
	})
	if err != nil {
		return list, err
	}
	return list, fetched()
}

// fetching is Fetching, also for a bottle without a workspace.
func (m *Manager) fetching(ctx context.Context, name string) (func() error, error) {
	fetched, err := m.Fetching(ctx, name)
	if errors.Is(err, ErrNone) {
		return func() error { return nil }, nil
	}
	return fetched, err
}

// Summarize counts the agent's commits and changed files.
func (m *Manager) Summarize(ctx context.Context, name string, o Options) (s Summary, err error) {
	err = m.withCopy(ctx, name, o, func(w *worktree.Work) error {
		s, err = w.Summary(ctx)
		return err
	})
	return s, err
}

// RecordSummary stores a count of the work, which List returns when the bottle is gone. It
// is to be called when the agent has ended.
func (m *Manager) RecordSummary(ctx context.Context, name string, s Summary) error {
	return m.workspaces.Update(ctx, name, func(r *workspace.Record) {
		r.Summary = &workspace.Summary{Commits: s.Commits, Files: s.Files}
	})
}

// copyDir returns the directory with the description of a bottle's copy: that of the
// workspace, which outlives the bottle, if there is one.
func (m *Manager) copyDir(name string) string {
	if _, err := os.Stat(m.workspaces.Dir(name)); err == nil {
		return m.workspaces.Dir(name)
	}
	return m.teardown.StateDir(name)
}

// withCopy calls fn with access to a bottle that has a copy of a directory.
func (m *Manager) withCopy(ctx context.Context, name string, o Options, fn func(*worktree.Work) error) error {
	base, err := worktree.Load(m.copyDir(name))
	if errors.Is(err, worktree.ErrNoBase) {
		return &hint.Error{Err: fmt.Errorf("%s %w", name, err), Hint: "run an agent with --cwd, or copy single files with bottle cp"}
	}
	if err != nil {
		return err
	}
	return m.withWork(ctx, name, o, func(w *worktree.Work) error {
		w.Base = base
		return fn(w)
	})
}

// withWork calls fn with access to a bottle, or to the workspace of one that is not
// running.
func (m *Manager) withWork(ctx context.Context, name string, o Options, fn func(*worktree.Work) error) (err error) {
	running, err := m.rt.Alive(ctx, name)
	if err != nil {
		return err
	}
	inside := inside(func(ctx context.Context, cfg session.Config) (*session.Session, error) {
		return session.Exec(ctx, m.rt, name, cfg)
	})
	if !running {
		stopped, oerr := m.Open(ctx, name)
		if errors.Is(oerr, ErrNone) {
			return &hint.Error{Err: fmt.Errorf("%w: %s", session.ErrNotRunning, name), Hint: "bottle list shows the running bottles"}
		}
		if oerr != nil {
			return oerr
		}
		defer func() { err = errors.Join(err, stopped.Close(ctx)) }()
		inside = stopped.Exec
	}
	return workHint(fn(&worktree.Work{Inside: inside, Caller: o.Caller, Limits: o.Limits, Notice: o.Notice}))
}

func workHint(err error) error {
	if hint.Of(err) == "" && errors.Is(err, worktree.ErrTooLarge) {
		return &hint.Error{Err: err, Hint: "raise the limit with --max-size, or copy less"}
	}
	return err
}
