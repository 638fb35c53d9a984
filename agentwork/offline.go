package agentwork

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/workspace"
)

// Offline is a sandbox over the workspace of a bottle that is not running, with the
// bottle's image and runtime and without any network. The agent's files, such as a git
// repository, are hostile: commands that work on them run here and never on the host.
type Offline struct {
	m    *Manager
	id   string // of the sandbox
	task *runtime.Task
	Lock *filelock.Lock // on the workspace; Close releases it
}

// Open starts a sandbox over the workspace of a bottle that is not running. It
// waits until no other such sandbox uses the workspace. The caller must call Close. The
// error wraps workspace.ErrNotFound, ErrInUse if the bottle is running, or
// plan.ErrImageMissing.
func (m *Manager) Open(ctx context.Context, name string) (_ *Offline, err error) {
	lock, err := m.workspaces.Lock(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Release())
		}
	}()
	if err := m.checkUnused(ctx, name); err != nil {
		return nil, err
	}
	r, err := m.workspaces.Load(name)
	if err != nil {
		return nil, err
	}
	o := &Offline{m: m, id: names.Work(name), Lock: lock}
	// Nobody else holds the lock, so what exists is left by a process that was killed.
	if err := m.teardown.RemoveName(ctx, o.id); err != nil {
		return nil, err
	}
	if err := o.start(ctx, r); err != nil {
		return nil, errors.Join(fmt.Errorf("open workspace of %s: %w", name, err), m.teardown.RemoveName(ctx, o.id))
	}
	return o, nil
}

func (o *Offline) start(ctx context.Context, r *workspace.Record) error {
	m := o.m
	if _, err := m.images.Image(ctx, r.Image); err != nil {
		if errors.Is(err, plan.ErrImageMissing) {
			err = &hint.Error{Err: err, Hint: "bottle pull " + r.Image + ", or build it again"}
		}
		return err
	}
	if err := m.teardown.MakeRunDir(); err != nil {
		return err
	}
	if err := shareddir.Mkdir(m.rt.Dir(o.id), 0o700); err != nil {
		return err
	}
	if err := m.workspaces.Mount(r.Name, m.teardown.WorkMount(o.id)); err != nil {
		return workspace.Hint(err)
	}
	if err := m.images.Unpack(ctx, r.Image); err != nil {
		return err
	}
	rootfs, err := m.rt.PrepareRootFS(ctx, o.id, r.Image, func(fs *runtime.RootFS) ([]runtime.File, error) {
		fs.SetWorkDir(r.Target)
		return append(provision.Agent{Hostname: names.Hostname(r.Name)}.RootFiles(session.Image(fs)),
			rootfile.File{Path: r.Target, Mode: os.ModeDir | 0o755, MountPoint: true}), nil
	})
	if err != nil {
		return err
	}
	rootfs.User.UID, rootfs.User.GID = r.UID, r.GID // the files' owner
	program, err := o.writeGuestDir(rootfs)
	if err != nil {
		return err
	}
	limits := manifest.Limits{}.OrDefault()
	o.task, err = m.rt.CreateAgent(ctx, runtime.AgentConfig{
		Name: o.id, Runtime: r.Runtime, Hostname: names.Hostname(r.Name),
		Mounts: append(session.Mounts(m.rt.Dir(o.id), program), Bind(m.teardown.WorkMount(o.id), r.Target)),
		Tmpfs:  []string{provision.GuestRun}, Init: []string{provision.GuestInit, "init"},
		Memory: limits.Memory, Pids: limits.Pids, Disk: limits.Disk,
		Labels: map[string]string{
			runtime.LabelName: o.id, runtime.LabelRole: runtime.RoleWork, runtime.LabelAgent: r.Agent,
			runtime.LabelImage: r.Image, runtime.LabelRuntime: r.Runtime,
		},
	}, rootfs)
	if err != nil {
		return err
	}
	if err := o.task.Start(ctx); err != nil || r.Runtime == runtime.RuntimeRunc {
		return err
	}
	return o.task.HardenHostProcesses()
}

// writeGuestDir creates the guest directory and returns the guest program's path.
func (o *Offline) writeGuestDir(rootfs *runtime.RootFS) (program string, err error) {
	dir := o.m.teardown.StateDir(o.id)
	if err := shareddir.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if program, err = o.m.program.Write(dir, "guest"); err != nil {
		return "", err
	}
	files := provision.Agent{}.GuestFiles(session.Image(rootfs))
	return program, session.CreateGuestDir(o.m.rt.Dir(o.id), files, rootfs.User)
}

// Exec starts a process in the sandbox, as the agent's user. The caller must call Wait.
func (o *Offline) Exec(ctx context.Context, cfg session.Config) (*session.Session, error) {
	return session.Start(ctx, o.m.rt, o.id, cfg, o.task.Exec)
}

// Close removes the sandbox. The workspace is kept.
func (o *Offline) Close(ctx context.Context) error {
	return errors.Join(o.m.teardown.RemoveName(ctx, o.id), o.Lock.Release())
}

// Bind mounts the agent's files of a mounted workspace into its container.
func Bind(mount, target string) runtime.Mount {
	return runtime.Mount{Source: filepath.Join(mount, workspace.Files), Target: target, Writable: true, Exclusive: true}
}
