package bottle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/sshagent"
	"github.com/bot-bottle/bottle/worktree"
)

// guestName is the name of the guest program in a bottle's state directory.
const guestName = "guest"

// createGuestDir creates the directory that is mounted at provision.GuestDir.
func (l *launch) createGuestDir(ctx context.Context) error {
	program, err := l.e.cfg.guestProgram().Write(l.e.stateDir(l.plan.Name), guestName)
	if err != nil {
		return err
	}
	l.guestProgram = program
	if err := l.describeCopy(ctx); err != nil {
		return err
	}
	files := l.startProvisions().GuestFiles(session.Image(l.rootfs))
	return session.CreateGuestDir(l.dir, files, l.rootfs.User)
}

// describeCopy records what the image's copy of the working directory contains, so that
// the agent's work can be brought back while the bottle is running.
func (l *launch) describeCopy(ctx context.Context) error {
	if l.plan.BaseRef == "" {
		return nil
	}
	base, err := worktree.Describe(ctx, l.source())
	if err != nil {
		return err
	}
	return base.Save(l.e.stateDir(l.plan.Name))
}

func (l *launch) mounts() []runtime.Mount {
	mounts := session.Mounts(l.dir, l.guestProgram)
	if l.plan.Workspace != nil {
		mounts = append(mounts, agentwork.Bind(l.e.teardown.WorkMount(l.plan.Name), l.plan.Target))
	}
	return mounts
}

// prepareImage derives the image with the working directory, if requested, and unpacks
// the image. A concurrent launch may derive an image of the same name: the lock hold
// keeps this launch's image until a snapshot refers to it.
func (l *launch) prepareImage(ctx context.Context) error {
	p := l.plan
	if p.BaseRef != "" {
		if err := l.derive(ctx); err != nil {
			return err
		}
	}
	if err := l.e.Images().Unpack(ctx, p.Image); err != nil {
		return err
	}
	return l.checkImage(ctx)
}

// checkImage checks the image again, if the administrator's policy names digests: a name
// may refer to another image since the plan was made.
func (l *launch) checkImage(ctx context.Context) error {
	p := l.plan
	if p.Policy == nil {
		return nil
	}
	ref := cmp.Or(p.BaseRef, p.Image)
	info, err := l.e.Image(ctx, ref)
	if err != nil {
		return err
	}
	return p.CheckImage(ref, info.Digest)
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
	if errors.Is(err, images.ErrNoSpace) {
		return &hint.Error{Err: err, Hint: "free space: remove images with bottle rmi, or exclude files in .bottleignore"}
	}
	return supply.Hint(p.BaseRef, copyHint(err))
}

// copyHint adds a hint to an error about a directory that is copied.
func copyHint(err error) error {
	switch {
	case hint.Of(err) != "":
	case errors.Is(err, images.ErrUnreadable):
		return &hint.Error{Err: err, Hint: "change its permissions, or exclude it in .bottleignore"}
	case errors.Is(err, images.ErrIgnoreLink):
		return &hint.Error{Err: err, Hint: "replace the link with a file, or with a link to a file in the directory"}
	}
	return err
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
	if l.fork != nil {
		return l.restoreFork(ctx)
	}
	defer l.releaseImage()
	if err := l.step(ctx, "prepare image", l.prepareImage); err != nil {
		return err
	}
	if err := l.step(ctx, "prepare root file system", l.prepareRootFS); err != nil {
		return err
	}
	l.releaseImage()
	if l.plan.Workspace != nil {
		if err := l.step(ctx, "prepare workspace", l.prepareWorkspace); err != nil {
			return err
		}
	}
	if err := l.step(ctx, "write guest files", l.createGuestDir); err != nil {
		return err
	}
	if err := wait(ctx, l.namespaced); err != nil {
		return err
	}
	err := l.step(ctx, "create agent", func(ctx context.Context) (err error) {
		l.agent, err = l.createAgent(ctx)
		return err
	})
	if err != nil {
		return err
	}
	// gVisor takes over the namespace's addresses and routes at the start (runsc/sandbox,
	// StartRoot), and no code of the agent runs before all isolation is verified.
	if err := wait(ctx, l.networked); err != nil {
		return err
	}
	if l.plan.Workspace != nil {
		if err := l.recordWorkspace(ctx); err != nil {
			return err
		}
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
	if err != nil || l.ahead {
		return err
	}
	return l.startSSH(ctx)
}

func (l *launch) startSSH(ctx context.Context) error {
	if len(provision.SSHKeys(l.provisions().SSH)) == 0 {
		return nil
	}
	return l.step(ctx, "start ssh agent", l.startRelay)
}

func (l *launch) prepareRootFS(ctx context.Context) (err error) {
	name := l.plan.Name
	if err := l.findWorkDir(ctx); err != nil {
		return err
	}
	l.rootfs, err = l.e.rt.PrepareRootFS(ctx, name, l.plan.Image, func(r *runtime.RootFS) ([]runtime.File, error) {
		if l.workDir != "" {
			r.SetWorkDir(l.workDir)
		}
		files := l.provisions().RootFiles(session.Image(r))
		if l.plan.Workspace != nil {
			files = append(files, rootfile.File{Path: l.plan.Target, Mode: fs.ModeDir | 0o755, MountPoint: true})
		}
		if l.plan.Runtime == runtime.RuntimeRunc {
			files = append(files, runtime.PrivateGroup())
		}
		return files, nil
	})
	if err != nil {
		return err
	}
	l.claim.Own(l.rootfs.Remove)
	if l.ahead && l.rootfs.Digest() != l.plan.ImageDigest {
		return fmt.Errorf("image %s has changed: got %s, planned %s", l.plan.Image, l.rootfs.Digest(), l.plan.ImageDigest)
	}
	return nil
}

func (l *launch) createAgent(ctx context.Context) (*runtime.Task, error) {
	p := l.plan
	task, err := l.e.rt.CreateAgent(ctx, runtime.AgentConfig{
		Name: p.Name, Runtime: p.Runtime, NetNS: netns.AgentPath(l.dir), Hostname: names.Hostname(p.Name),
		Env: l.startProvisions().Environ(session.Image(l.rootfs)), Mounts: l.mounts(),
		Tmpfs: []string{provision.GuestRun}, Init: []string{provision.GuestInit, "init"},
		Memory: p.Limits.Memory, CPUs: p.Limits.CPUs, Pids: p.Limits.Pids, Disk: p.Limits.Disk,
		Labels: l.labels(runtime.RoleAgent), AddCaps: l.e.hooks.addCaps,
	}, l.rootfs)
	if err != nil {
		return nil, err
	}
	return task, nil
}

// startRelay starts the ssh agent: its socket is in the sandbox, and it runs in this
// process.
func (l *launch) startRelay(ctx context.Context) error {
	log, err := egress.OpenSSHLog(l.e.proxies.SSHLogFile(l.plan.Name))
	if err != nil {
		return fmt.Errorf("start ssh agent relay: %w", err)
	}
	agent := sshagent.New(provision.SSHKeys(l.provisions().SSH), l.e.log, func(e sshagent.Event) error {
		if err := l.auditSignature(e); err != nil {
			return err
		}
		return logSignature(log, e)
	})
	listen := func(stdin io.Reader, stdout, stderr io.Writer) (func() (int, error), error) {
		s, err := l.e.rt.Exec(ctx, l.plan.Name, runtime.SessionConfig{
			Args: []string{provision.GuestInit, "agent", provision.GuestSSHSocket}, Stdin: stdin, Stdout: stdout, Stderr: stderr,
		})
		if err != nil {
			return nil, err
		}
		return s.Wait, nil
	}
	l.relay, err = agent.Forward(ctx, listen, func() { _ = log.Close() }) // each line is written when it is logged
	return err
}

// logSignature logs a signature that a process in the sandbox has requested. The agent
// does not give a signature that cannot be logged.
func logSignature(log *egress.SSHLog, e sshagent.Event) error {
	s := egress.Signature{Host: e.Host, HostKey: e.HostKey, User: e.User, Key: e.Key, HostBound: e.HostBound}
	switch {
	case e.Granted:
		return log.Granted(s)
	case e.Unbound:
		return log.Refused(s, egress.ScannerSSHUnbound, e.Reason)
	}
	return log.Refused(s, egress.ScannerSSH, e.Reason)
}
