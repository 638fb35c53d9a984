package workspace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Reasons why a host cannot have workspaces. Check returns one of them or ErrNoMkfs.
var (
	ErrNoLoop = errors.New("no loop devices")
	ErrNoExt4 = errors.New("the kernel has no ext4 file system")
)

// Check checks that workspaces can be created and mounted. It changes nothing.
func Check() error {
	if _, err := findMkfs(); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return fmt.Errorf("%w: %w", ErrNoLoop, err)
	}
	if known, err := os.ReadFile("/proc/filesystems"); err == nil && !strings.Contains(string(known), "\text4\n") && !hasModule("ext4") {
		return ErrNoExt4
	}
	return nil
}

// hasModule reports whether the kernel can load a module on demand.
func hasModule(name string) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	found, err := filepath.Glob(filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]), "kernel/fs", name, name+".ko*"))
	return err == nil && len(found) > 0
}

// FreeSpace returns the free space of the disk that contains dir, or will contain it, in
// bytes.
func FreeSpace(dir string) (int64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if errors.Is(err, unix.ENOENT) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("get free space of %s: %w", dir, err)
		}
		return int64(st.Bavail) * st.Bsize, nil
	}
}
