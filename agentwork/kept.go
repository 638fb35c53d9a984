package agentwork

import (
	"context"
	"errors"
	"fmt"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/workspace"
	"github.com/bot-bottle/bottle/worktree"
)

// Kept describes the workspace of a bottle.
type Kept struct {
	workspace.Record
	Used int64 `json:"used_bytes"` // disk space on the host
	// Bottle is the state of the bottle's agent, as bottle list shows it; NoBottle if there is no
	// bottle any more.
	Bottle string `json:"bottle"`
	// Changed means that the agent may have changed files, and Unfetched that some of
	// its work may not have been fetched.
	Changed   bool `json:"changed"`
	Unfetched bool `json:"unfetched"`
	// Git means that the copy is a git repository, so that its work can be fetched.
	Git bool `json:"git"`
}

// NoBottle is the state of a workspace without a bottle.
const NoBottle = "none"

// Workspaces returns the workspaces of running and former bottles, ordered by name.
func (m *Manager) Workspaces(ctx context.Context) ([]Kept, error) {
	states, err := m.states(ctx)
	if err != nil {
		return nil, err
	}
	return m.WorkspacesOf(states)
}

// WorkspacesOf is Workspaces with the states of the bottles.
func (m *Manager) WorkspacesOf(states map[string]string) ([]Kept, error) {
	names, err := m.workspaces.Names()
	if err != nil {
		return nil, err
	}
	kept := []Kept{}
	for _, name := range names {
		if m.visible != nil && !m.visible(name) {
			continue
		}
		k, err := m.kept(name, states)
		if errors.Is(err, workspace.ErrNotFound) { // incomplete, or removed meanwhile
			continue
		}
		if err != nil {
			return nil, err
		}
		kept = append(kept, k)
	}
	return kept, nil
}

// ErrNone is wrapped if a bottle has no workspace.
var ErrNone = workspace.ErrNotFound

// Workspace returns the workspace of a bottle. The files of a running bottle are
// compared with those that were copied. The error wraps ErrNone.
func (m *Manager) Workspace(ctx context.Context, name string) (Kept, error) {
	// Most bottles have none, and this is called at the end of each.
	if _, err := m.workspaces.Load(name); err != nil {
		return Kept{}, err
	}
	states, err := m.states(ctx)
	if err != nil {
		return Kept{}, err
	}
	k, err := m.kept(name, states)
	if err != nil {
		return Kept{}, err
	}
	now, err := m.workspaces.State(ctx, &k.Record, m.teardown.WorkMount(name))
	if err != nil {
		return Kept{}, err
	}
	k.Changed, k.Unfetched = now.Changed(), now.Unfetched()
	base, err := worktree.Load(m.workspaces.Dir(name))
	if err == nil {
		k.Git = base.Git()
	} else if !errors.Is(err, worktree.ErrNoBase) {
		return Kept{}, err
	}
	return k, nil
}

func (m *Manager) kept(name string, states map[string]string) (Kept, error) {
	r, err := m.workspaces.Load(name)
	if err != nil {
		return Kept{}, err
	}
	k := Kept{Record: *r, Bottle: NoBottle, Changed: r.Changed(), Unfetched: r.Unfetched()}
	if state, ok := states[name]; ok {
		k.Bottle = state
	}
	k.Used, err = m.workspaces.Used(name)
	return k, err
}

// Fetching begins a fetch of the work in a bottle's workspace, running or not. The
// returned function records that it was fetched.
func (m *Manager) Fetching(ctx context.Context, name string) (fetched func() error, err error) {
	return m.workspaces.Fetching(ctx, name, m.teardown.WorkMount(name))
}

// ErrInUse is wrapped if a workspace is in use by a bottle.
var ErrInUse = errors.New("workspace is in use")

// Discard removes the workspace of a bottle that does not exist any more. The
// error wraps ErrInUse if the bottle exists, and workspace.ErrNotFound.
func (m *Manager) Discard(ctx context.Context, name string) (err error) {
	lock, err := m.workspaces.Lock(ctx, name, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	if err := m.checkUnused(ctx, name); err != nil {
		return err
	}
	return m.workspaces.Remove(name)
}

// Abandon makes the removal of a bottle remove its workspace, too, which is faster than
// Discard afterwards.
func (m *Manager) Abandon(name string) error { return m.workspaces.Abandon(name) }

// Flush begins to write the workspace of a bottle to disk. The returned function waits for
// the end. A bottle whose work is not kept is not an error.
func (m *Manager) Flush(name string) (wait func()) {
	return m.workspaces.Flush(name, m.teardown.WorkMount(name))
}

// checkUnused returns an error if a bottle of the name exists.
func (m *Manager) checkUnused(ctx context.Context, name string) error {
	mounted, err := workspace.Mounted(m.teardown.WorkMount(name))
	if err != nil {
		return err
	}
	alive, err := m.rt.Alive(ctx, name)
	if err != nil {
		return err
	}
	if err := m.rt.CheckSuspended(name); err != nil {
		return err // its processes continue with the files as they are
	}
	if mounted || alive {
		return &hint.Error{Err: fmt.Errorf("%w: %s", ErrInUse, name), Hint: "remove the bottle first: bottle rm -f " + name}
	}
	return nil
}

// Check checks that workspaces of at most size bytes can be created on this host, and
// returns warnings.
func (m *Manager) Check(size int64) ([]string, error) {
	if err := workspace.Check(); err != nil {
		return nil, workspace.Hint(err)
	}
	free, err := workspace.FreeSpace(m.stateDir)
	if err != nil {
		return nil, err
	}
	if free < size {
		return []string{fmt.Sprintf("the workspace may grow to %d MiB, but %s has only %d MiB free", size>>20, m.stateDir, free>>20)}, nil
	}
	return nil, nil
}
