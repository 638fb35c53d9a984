package bottle

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/workspace"
	"github.com/bot-bottle/bottle/worktree"
)

// findWorkDir finds the working directory of all sessions in the workspace: what
// corresponds to the plan's directory, which may be below the top of a git repository.
func (l *launch) findWorkDir(ctx context.Context) (err error) {
	if l.plan.Workspace == nil {
		return nil
	}
	l.workDir = l.plan.Target
	if !l.plan.Workspace.Existing {
		l.workDir, err = worktree.WorkDir(ctx, l.source())
		return copyHint(err)
	}
	base, err := worktree.Load(l.e.workspaces.Dir(l.plan.Name))
	if err != nil {
		return err
	}
	l.workDir = base.WorkDir()
	return nil
}

// source is what is copied into the workspace.
func (l *launch) source() worktree.Source {
	p := l.plan
	return worktree.Source{Dir: p.Dir, Target: p.Target, Caller: p.Caller(), Ignored: p.CwdIgnored, Notice: l.e.cfg.Notice}
}

// prepareWorkspace mounts the bottle's workspace: a new one, with a copy of the plan's
// directory, or the existing one.
func (l *launch) prepareWorkspace(ctx context.Context) error {
	name, w := l.plan.Name, l.e.workspaces
	if !l.plan.Workspace.Existing {
		err := w.Create(ctx, name, l.plan.Workspace.Size)
		if errors.Is(err, workspace.ErrExists) {
			return fmt.Errorf("%w: %w", runtime.ErrTaken, err)
		}
		if err != nil {
			return workspace.Hint(err)
		}
		l.claim.OwnWorkspace()
	}
	if err := l.e.mountWorkspace(ctx, name, l.e.teardown.WorkMount(name)); err != nil {
		return err
	}
	if !l.plan.Workspace.Existing {
		return l.fillWorkspace(ctx)
	}
	r, err := w.Load(name)
	if err != nil {
		return err
	}
	if u := l.rootfs.User; u.UID != r.UID || u.GID != r.GID {
		return fmt.Errorf("the image's user is %d:%d now, and the workspace's files belong to %d:%d", u.UID, u.GID, r.UID, r.GID)
	}
	return w.Begin(ctx, name)
}

// mountWorkspace waits until nothing else works on a stopped bottle's workspace, and
// mounts it.
func (e *Engine) mountWorkspace(ctx context.Context, name, at string) (err error) {
	lock, err := e.workspaces.Lock(ctx, name, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	return workspace.Hint(e.workspaces.Mount(name, at))
}

// fillWorkspace copies the plan's directory into the mounted workspace.
func (l *launch) fillWorkspace(ctx context.Context) error {
	at := l.e.teardown.WorkMount(l.plan.Name)
	uid, gid := int(l.rootfs.User.UID), int(l.rootfs.User.GID)
	if err := workspace.Prepare(at, uid, gid); err != nil {
		return err
	}
	// If the host crashes now, the workspace is incomplete and not used.
	if err := workspace.SetFlush(at, false); err != nil {
		return err
	}
	src := l.source()
	var copied int64
	report := l.copyProgress()
	src.Progress = func(done, total int64) {
		copied = done
		report(done, total)
	}
	base, err := worktree.Copy(ctx, src, filepath.Join(at, workspace.Files), uid, gid)
	if errors.Is(err, unix.ENOSPC) {
		return &hint.Error{
			Err:  fmt.Errorf("the workspace is too small, or the disk is full: %w", err),
			Hint: "raise limits.workspace in the manifest, exclude files in .bottleignore, or free space",
		}
	}
	if err != nil {
		return copyHint(err)
	}
	if err := workspace.SetFlush(at, true); err != nil {
		return err
	}
	l.e.cfg.progress(images.Progress{ID: l.plan.Dir, State: images.StateDone, Done: copied, Total: copied})
	return base.Save(l.e.workspaces.Dir(l.plan.Name))
}

// copyProgress reports the progress of the copy, not for every file.
func (l *launch) copyProgress() func(done, total int64) {
	var reported time.Time
	return func(done, total int64) {
		if now := time.Now(); now.Sub(reported) > 100*time.Millisecond {
			reported = now
			l.e.cfg.progress(images.Progress{ID: l.plan.Dir, State: images.StateActive, Done: done, Total: total})
		}
	}
}

func (c Config) progress(p images.Progress) {
	if c.Progress != nil {
		c.Progress(p)
	}
}

// recordWorkspace completes a new workspace. From now on it outlives the bottle.
func (l *launch) recordWorkspace(ctx context.Context) error {
	p := l.plan
	if p.Workspace.Existing {
		return nil
	}
	image, err := l.e.images.Lookup(ctx, p.Image)
	if err != nil {
		return err
	}
	start, err := workspace.Fingerprint(ctx, l.e.teardown.WorkMount(p.Name))
	if err != nil {
		return err
	}
	return l.e.workspaces.Save(&workspace.Record{
		Name: p.Name, Agent: p.Agent, Manifest: p.Manifest, Owner: p.Caller().UID, Source: p.Dir, Target: p.Target,
		Image: p.Image, Digest: image.Digest, Runtime: p.Runtime, UID: l.rootfs.User.UID, GID: l.rootfs.User.GID,
		Size: p.Workspace.Size, Created: time.Now(), Start: start,
	})
}
