package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
