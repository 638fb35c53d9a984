package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/worktree"
)

// createGuestDir creates the directory that is mounted at provision.GuestDir.
func (l *launch) createGuestDir(ctx context.Context) error {
	dir := filepath.Join(l.dir, "guest")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("create guest directory: %w", err)
	}
	if err := l.writeGuestProgram(); err != nil {
		return err
	}
	if err := l.describeCopy(ctx); err != nil {
		return err
	}
	uid, gid := int(l.rootfs.User.UID), int(l.rootfs.User.GID)
	for _, f := range l.plan.Provisions().GuestFiles(provisionImage(l.rootfs)) {
		if err := writeGuestFile(filepath.Join(dir, f.Name), f, uid, gid); err != nil {
			return fmt.Errorf("create guest directory: %w", err)
		}
	}
	return nil
}

// provisionImage returns the properties of an image that provisioning depends on.
func provisionImage(r *runtime.RootFS) provision.Image {
	return provision.Image{
		Home: r.Home(), UserHome: r.User.Home, WorkDir: r.WorkDir(), Env: r.Config().Env, UID: r.User.UID,
	}
}

// describeCopy records what the image's copy of the working directory contains, so that
// the agent's work can be brought back.
func (l *launch) describeCopy(ctx context.Context) error {
	p := l.plan
	if p.Dir == "" {
		return nil
	}
	base, err := worktree.Describe(ctx, worktree.Source{Dir: p.Dir, Target: p.Target, Caller: p.Caller()})
	if err != nil {
		return err
	}
	return base.Save(l.e.stateDir(p.Name))
}

// writeGuestFile creates a file or directory. A private file gets its owner before it
// gets its content.
func writeGuestFile(name string, f provision.GuestFile, uid, gid int) (err error) {
	if f.Mode.IsDir() {
		return os.Mkdir(name, f.Mode.Perm())
	}
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if f.Private {
		if err := out.Chown(uid, gid); err != nil {
			return err
		}
	}
	_, err = out.Write(f.Data)
	return err
}

// writeGuestProgram writes the guest program to disk. It cannot be in /run, which some
// distributions (Debian) mount noexec: gVisor cannot execute such a file either, because
// it maps it with the host's mmap(2). If the state directory is mounted noexec as well,
// bottle's own executable is used.
func (l *launch) writeGuestProgram() error {
	l.guestProgram = l.e.cfg.Program
	if len(l.e.cfg.Guest) == 0 {
		return nil
	}
	dir := l.e.stateDir(l.plan.Name)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("check %s: %w", dir, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return nil
	}
	l.guestProgram = filepath.Join(dir, "guest")
	if err := os.WriteFile(l.guestProgram, l.e.cfg.Guest, 0o755); err != nil {
		return fmt.Errorf("write guest program: %w", err)
	}
	return nil
}

func (l *launch) guestMounts() []runtime.Mount {
	return []runtime.Mount{
		{Source: filepath.Join(l.dir, "guest"), Target: provision.GuestDir},
		{Source: l.guestProgram, Target: provision.GuestInit},
	}
}

// prepareImage derives the image with the working directory, if requested, and unpacks
// the image. A concurrent launch may derive an image of the same name: the lock hold
// keeps this launch's image until a snapshot refers to it.
func (l *launch) prepareImage(ctx context.Context) error {
	p := l.plan
	if p.Dir != "" {
		if err := l.derive(ctx); err != nil {
			return err
		}
	}
	return registryHint(p.Image, l.e.images.Unpack(ctx, p.Image))
}

func (l *launch) derive(ctx context.Context) (err error) {
	if l.hold, err = filelock.Open(ctx, l.e.dir(""), nil); err != nil {
		return err
	}
	p := l.plan
	_, err = l.e.images.Derive(ctx, images.Derivation{
		Ref: p.Image, Base: p.BaseRef, Dir: p.Dir, Target: p.Target, Caller: p.Caller().User(),
		Owner: func(ctx context.Context) (int, int, error) {
			u, err := l.e.rt.ImageUser(ctx, p.BaseRef)
			return int(u.UID), int(u.GID), err
		},
		Notice: l.e.cfg.Notice, Progress: l.e.cfg.Progress,
	})
	switch {
	case errors.Is(err, images.ErrUnreadable):
		return &hint.Error{Err: err, Hint: "change its permissions, or exclude it in .bottleignore"}
	case errors.Is(err, images.ErrIgnoreLink):
		return &hint.Error{Err: err, Hint: "replace the link with a file, or with a link to a file in the directory"}
	case errors.Is(err, images.ErrNoSpace):
		return &hint.Error{Err: err, Hint: "free space: remove images with bottle rmi, or exclude files in .bottleignore"}
	}
	return registryHint(p.BaseRef, err)
}

// releaseImage releases the lock on the derived image's name.
func (l *launch) releaseImage() {
	if l.hold != nil {
		_ = l.hold.Release() // closing the file releases it even after an error
		l.hold = nil
	}
}

// startAgent prepares the agent's image and files, and creates and starts its task.
func (l *launch) startAgent(ctx context.Context) error {
	defer l.releaseImage()
	if err := l.step(ctx, "prepare image", l.prepareImage); err != nil {
		return err
	}
	if err := l.step(ctx, "prepare root file system", l.prepareRootFS); err != nil {
		return err
	}
	l.releaseImage()
	if err := l.step(ctx, "write guest files", l.createGuestDir); err != nil {
		return err
	}
	// gVisor takes over the namespace's addresses and routes at creation.
	if err := wait(ctx, l.segmented); err != nil {
		return err
	}
	err := l.step(ctx, "create agent", func(ctx context.Context) (err error) {
		l.agent, err = l.createAgent(ctx)
		return err
	})
	if err != nil {
		return err
	}
	// No code of the agent runs before all isolation is verified.
	if err := wait(ctx, l.networked); err != nil {
		return err
	}
	err = l.step(ctx, "start agent", func(ctx context.Context) error {
		if err := l.agent.Start(ctx); err != nil {
			return err
		}
		if l.plan.Runtime == runtime.RuntimeRunc {
			return nil
		}
		return l.agent.HardenHostProcesses()
	})
	if err != nil || len(provision.SSHKeys(l.plan.Provisions().SSH)) == 0 {
		return err
	}
	return l.step(ctx, "start ssh agent", l.startRelay)
}

func (l *launch) prepareRootFS(ctx context.Context) (err error) {
	name := l.plan.Name
	l.rootfs, err = l.e.rt.PrepareRootFS(ctx, name, l.plan.Image, func(r *runtime.RootFS) ([]runtime.File, error) {
		files := l.plan.Provisions().RootFiles(provisionImage(r))
		if l.plan.Runtime == runtime.RuntimeRunc {
			files = append(files, runtime.PrivateGroup())
		}
		return files, nil
	})
	if err != nil {
		return err
	}
	l.undo.push(func(ctx context.Context) error { return l.rootfs.Remove(ctx) })
	return nil
}

func (l *launch) createAgent(ctx context.Context) (*runtime.Task, error) {
	p := l.plan
	task, err := l.e.rt.CreateAgent(ctx, runtime.AgentConfig{
		Name: p.Name, Runtime: p.Runtime, NetNS: netns.AgentPath(l.dir), Hostname: names.Hostname(p.Name),
		Env: l.plan.Provisions().Environ(provisionImage(l.rootfs)), Mounts: l.guestMounts(),
		Tmpfs: []string{provision.GuestRun}, Init: []string{provision.GuestInit, "init"},
		Memory: p.Limits.Memory, CPUs: p.Limits.CPUs, Pids: p.Limits.Pids, Disk: p.Limits.Disk,
		Labels: l.labels(runtime.RoleAgent), AddCaps: l.e.hooks.addCaps,
	}, l.rootfs)
	if err != nil {
		return nil, err
	}
	l.undo.push(func(ctx context.Context) error { return l.e.rt.Remove(ctx, p.Name) })
	return task, nil
}
