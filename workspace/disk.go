package workspace

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoMkfs means that the program that creates file systems is missing.
var ErrNoMkfs = errors.New("mkfs.ext4 not found")

// sbin are directories of system programs that may be missing from PATH.
var sbin = []string{"/usr/sbin", "/sbin"}

func findMkfs() (string, error) {
	if bin, err := exec.LookPath("mkfs.ext4"); err == nil {
		return bin, nil
	}
	for _, dir := range sbin {
		if bin, err := exec.LookPath(filepath.Join(dir, "mkfs.ext4")); err == nil {
			return bin, nil
		}
	}
	return "", ErrNoMkfs
}

// journalMiB is the size of the journal. It is what makes the file system consistent
// after the host has crashed. The default of 64 MiB or more would be filled over time,
// and in a sparse file that is disk space.
const journalMiB = 16

// mkfsOptions create a file system in a sparse file whose blocks are allocated as they
// are used. The initialization of inode tables and journal is left out: the holes of the
// file read as zeros.
var mkfsOptions = []string{
	"-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", "-O", "^resize_inode",
}

// format creates a sparse file with an empty file system.
func format(ctx context.Context, file string, size int64) error {
	mkfs, err := findMkfs()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	args := append([]string{}, mkfsOptions...)
	args = append(args, "-J", fmt.Sprintf("size=%d", min(journalMiB, max(4, size>>24))), file)
	cmd := exec.CommandContext(ctx, mkfs, args...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"} // the caller's may contain secrets
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// attach returns an open loop device of a file. The kernel detaches the device when it
// is neither open nor mounted. A file that has a device already, such as that of a
// mounted workspace, gets no second one: two file systems on one file would destroy it,
// while a second mount of a device shares the first one's file system.
func attach(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // the device has it open
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if dev, err := attached(&st); dev != nil || err != nil {
		return dev, err
	}
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ctl.Close() }()
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		cfg := unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], file)
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &cfg)
		if err == nil {
			return dev, nil
		}
		if cerr := dev.Close(); !errors.Is(err, unix.EBUSY) { // EBUSY: another process was first
			return nil, errors.Join(fmt.Errorf("attach %s to %s: %w", file, dev.Name(), err), cerr)
		}
	}
}

// attached returns an open loop device that a file is attached to, or nil.
func attached(file *unix.Stat_t) (*os.File, error) {
	bound, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	for _, dir := range bound {
		dev, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(dir)), os.O_RDWR, 0)
		if err != nil {
			continue // detached meanwhile
		}
		// While the device is open it cannot be detached and attached to another file.
		info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
		if err == nil && info.Device == file.Dev && info.Inode == file.Ino {
			return dev, nil
		}
		if err := dev.Close(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}
