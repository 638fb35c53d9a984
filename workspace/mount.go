package workspace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mountFlags protect the host from the files: no program in them gains rights, and no
// node in them opens a device. The agent must be able to run programs that it builds,
// and gVisor maps them with the host's mmap(2), so noexec is not possible. Access times
// are not kept: a workspace that was only read is unchanged.
const mountFlags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOATIME

// mountOptions: without noinit_itable the kernel writes all inode tables in the
// background, which in a sparse file is disk space. Each commit of the journal flushes the
// device, and with it the entire file on the host's disk, so the default of a commit every
// 5 s makes the agent wait for the disk. With 30 s a crash of the host can lose what it can
// lose of any directory: what was written in the last half minute (vm.dirty_expire_centisecs)
// and not synchronized.
const mountOptions = "noinit_itable,errors=remount-ro,commit=30"

// SetFlush sets whether commits of a mounted workspace's journal flush the device, which is
// the default. Without it a crash of the host can destroy the file system, but a copy into
// it does not wait for the disk.
func SetFlush(at string, on bool) error {
	options := mountOptions + ",nobarrier"
	if on {
		options = mountOptions + ",barrier"
	}
	if err := unix.Mount("", at, "", mountFlags|unix.MS_REMOUNT, options); err != nil {
		return fmt.Errorf("remount workspace: %w", err)
	}
	return nil
}

// Mount mounts a workspace on a directory, which it creates. Only root may enter the
// mount. The caller must hold the lock. After an error nothing is mounted.
func (s *Store) Mount(name, at string) (err error) {
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("mount workspace %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("mount workspace %s: %w", name, err), os.Remove(at))
		}
	}()
	dev, err := attach(filepath.Join(s.Dir(name), diskFile))
	if err != nil {
		return err
	}
	// The mount keeps the device.
	defer func() { _ = dev.Close() }()
	if err := unix.Mount(dev.Name(), at, "ext4", mountFlags, mountOptions); err != nil {
		return fmt.Errorf("mount %s: %w", dev.Name(), err)
	}
	// Not propagated to other mount namespaces, which would keep it.
	if err := unix.Mount("", at, "", unix.MS_PRIVATE, ""); err != nil {
		return errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
	}
	return nil
}

// Prepare creates the agent's directory in a mounted workspace.
func Prepare(at string, uid, gid int) error {
	if err := os.Chmod(at, 0o700); err != nil {
		return err
	}
	files := filepath.Join(at, Files)
	if err := os.Mkdir(files, 0o755); err != nil {
		return err
	}
	return os.Chown(files, uid, gid)
}

// Mounted reports whether a file system is mounted on a directory.
func Mounted(at string) (bool, error) {
	var dir, parent unix.Stat_t
	err := unix.Lstat(at, &dir)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err == nil {
		err = unix.Lstat(filepath.Dir(at), &parent)
	}
	if err != nil {
		return false, fmt.Errorf("look for a mount on %s: %w", at, err)
	}
	return dir.Dev != parent.Dev, nil
}

// Unmount returns the free space of a mounted workspace to the host, writes everything
// to disk and unmounts it. It is idempotent.
func Unmount(ctx context.Context, at string) error {
	mounted, err := Mounted(at)
	if err != nil {
		return err
	}
	if mounted {
		trim(at)
	}
	for mounted {
		err := unix.Unmount(at, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) { // a process is still ending
			err = unix.Unmount(at, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount workspace: %w", err)
		}
		// A workspace may have been mounted several times on one directory.
		if mounted, err = Mounted(at); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount workspace: %w", err)
	}
	return nil
}

// Flush begins to write a workspace that is mounted on at to disk, so that unmounting it
// takes less time. The returned function waits for the end. Nothing depends on it: an
// incomplete workspace, or one that is not mounted, is not written.
func (s *Store) Flush(name, at string) (wait func()) {
	if _, err := s.Load(name); err != nil {
		return func() {}
	}
	var wg sync.WaitGroup
	wg.Go(func() { flush(at) })
	return wg.Wait
}

func flush(at string) {
	if mounted, err := Mounted(at); err != nil || !mounted {
		return
	}
	dir, err := os.Open(at)
	if err != nil {
		return
	}
	defer func() { _ = dir.Close() }()
	_ = unix.Syncfs(int(dir.Fd()))
}

// Numbers of linux/ext4.h: EXT4_IOC_SHUTDOWN is _IOR('X', 125, __u32), and its argument
// EXT4_GOING_FLAGS_NOLOGFLUSH.
const (
	ext4Shutdown   = 0x8004587d
	ext4NoLogFlush = 2
)

// drop shuts a file system down whose content is not wanted, so that unmounting it writes
// nothing. Without it unmounting takes longer; an error is not important.
func drop(at string) {
	dir, err := os.Open(at)
	if err != nil {
		return
	}
	defer func() { _ = dir.Close() }()
	_ = unix.IoctlSetPointerInt(int(dir.Fd()), ext4Shutdown, ext4NoLogFlush)
}

// fitrim is FITRIM: _IOWR('X', 121, struct fstrim_range) (linux/fs.h).
const fitrim = 0xc0185879

// trim makes holes of the file system's free blocks. Without it a workspace would
// occupy what it once contained; an error is not important.
func trim(at string) {
	dir, err := os.Open(at)
	if err != nil {
		return
	}
	defer func() { _ = dir.Close() }()
	// ext4 frees the blocks of a removed file when it commits the removal.
	_ = unix.Syncfs(int(dir.Fd()))
	all := struct{ start, length, minimum uint64 }{length: ^uint64(0)}
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fitrim, uintptr(unsafe.Pointer(&all)))
}
