package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// makeGuest creates the directory that is mounted at provision.GuestDir.
func (l *launch) makeGuest(context.Context) error {
	dir := filepath.Join(l.dir, "guest")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("create the guest directory: %w", err)
	}
	if err := l.writeGuestProgram(); err != nil {
		return err
	}
	uid, gid := int(l.rootfs.User.UID), int(l.rootfs.User.GID)
	for _, f := range l.plan.Provisions().GuestFiles(l.image()) {
		if err := writeGuestFile(filepath.Join(dir, f.Name), f, uid, gid); err != nil {
			return fmt.Errorf("create the guest directory: %w", err)
		}
	}
	return nil
}

// image is what provisioning needs to know about the agent's image.
func (l *launch) image() provision.Image {
	return provisionImage(l.rootfs)
}

func provisionImage(r *runtime.RootFS) provision.Image {
	return provision.Image{
		Home: r.Home(), UserHome: r.User.Home, WorkDir: r.WorkDir(), Env: r.Config().Env, UID: r.User.UID,
	}
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

// writeGuestProgram puts the guest program on disk: Debian, for one, mounts /run
// so that nothing in it can be executed, and gVisor cannot either, as it maps
// what is executed inside with the host's mmap(2). Where the same holds for the
// state folder, bottle's own program serves, which is where programs are.
func (l *launch) writeGuestProgram() error {
	l.guestProgram = l.e.cfg.Program
	if len(l.e.cfg.Guest) == 0 {
		return nil
	}
	dir := l.e.stateDir(l.plan.Name)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return nil
	}
	l.guestProgram = filepath.Join(dir, "guest")
	if err := os.WriteFile(l.guestProgram, l.e.cfg.Guest, 0o755); err != nil {
		return fmt.Errorf("write the guest program: %w", err)
	}
	return nil
}

func (l *launch) guestMounts() []runtime.Mount {
	return []runtime.Mount{
		{Source: filepath.Join(l.dir, "guest"), Target: provision.GuestDir},
		{Source: l.guestProgram, Target: provision.GuestInit},
	}
}

// makeImage makes the image with the working directory, and unpacks the image. Other launches may make one of the same name: what
// this one has made is its own until hold is released, once a snapshot is over
// it.
func (l *launch) makeImage(ctx context.Context) error {
	p := l.plan
	if p.Folder != "" {
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
	notice := l.e.cfg.Notice
	_, err = l.e.images.Derive(ctx, images.Derivation{
		Ref: p.Image, Base: p.BaseRef, Dir: p.Folder, Target: p.Target, Caller: p.Caller().User(),
		Owner: func(ctx context.Context) (int, int, error) {
			u, err := l.e.rt.ImageUser(ctx, p.BaseRef)
			return int(u.UID), int(u.GID), err
		},
		Notice: notice, Progress: l.e.cfg.Progress,
	})
	switch {
	case errors.Is(err, images.ErrUnreadable):
		return &hint.Error{Err: err, Hint: "change the permissions, or exclude it in .bottleignore"}
	case errors.Is(err, images.ErrIgnoreLink):
		return &hint.Error{Err: err, Hint: "replace the link by a file, or by a link to a file in the directory"}
	case errors.Is(err, images.ErrNoSpace):
		return &hint.Error{Err: err, Hint: "make room: bottle rmi removes images, and what .bottleignore names stays out"}
	}
	return registryHint(p.BaseRef, err)
}

// releaseImage ends the hold on the derived image's name.
func (l *launch) releaseImage() {
	if l.hold != nil {
		_ = l.hold.Release() // closing releases it, whatever it returns
		l.hold = nil
	}
}

func (l *launch) makeAgent(ctx context.Context) error {
	defer l.releaseImage()
	if err := l.step(ctx, "image", func(ctx context.Context) error {
		return l.makeImage(ctx)
	}); err != nil {
		return err
	}
	if err := l.step(ctx, "root file system", l.makeRootFS); err != nil {
		return err
	}
	l.releaseImage()
	if err := l.step(ctx, "guest files", l.makeGuest); err != nil {
		return err
	}
	// gVisor takes over what the namespace has when the container is created.
	if err := wait(ctx, l.segmented); err != nil {
		return err
	}
	err := l.step(ctx, "agent container", func(ctx context.Context) (err error) {
		l.agent, err = l.createAgent(ctx)
		return err
	})
	if err != nil {
		return err
	}
	// Nothing of the agent's runs before every wall was seen to stand.
	if err := wait(ctx, l.networked); err != nil {
		return err
	}
	err = l.step(ctx, "agent start", func(ctx context.Context) error {
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
	l.undo.push(func(context.Context) error { l.relay.close(); return nil })
	return l.step(ctx, "ssh agent", l.startRelay)
}

func (l *launch) makeRootFS(ctx context.Context) (err error) {
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
	l.undo.push(func(ctx context.Context) error { return l.e.rt.RemoveSnapshot(ctx, name) })
	return nil
}

func (l *launch) createAgent(ctx context.Context) (*runtime.Task, error) {
	p := l.plan
	task, err := l.e.rt.CreateAgent(ctx, runtime.AgentConfig{
		Name: p.Name, Runtime: p.Runtime, NetNS: netns.AgentPath(l.dir), Hostname: names.Hostname(p.Name),
		Env: l.plan.Provisions().Environ(l.image()), Mounts: l.guestMounts(), Tmpfs: []string{provision.GuestRun}, Init: []string{provision.GuestInit, "init"},
		Memory: p.Limits.Memory, CPUs: p.Limits.CPUs, Pids: p.Limits.Pids, Disk: p.Limits.Disk,
		Labels: l.labels(runtime.RoleAgent), AddCaps: l.e.addCaps,
	}, l.rootfs)
	if err != nil {
		return nil, err
	}
	l.undo.push(func(ctx context.Context) error { return l.e.rt.Remove(ctx, p.Name) })
	return task, nil
}
