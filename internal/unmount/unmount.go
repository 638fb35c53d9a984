// Package unmount unmounts everything below a directory before it is removed.
package unmount

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Below unmounts every file system that is mounted on dir or below it, the latest
// first, also several on one path. It detaches them, so that a process that still uses
// one does not matter.
func Below(dir string) error {
	points, err := List(dir)
	if err != nil {
		return err
	}
	for i := len(points) - 1; i >= 0; i-- {
		// A concurrent removal may have come first.
		err := unix.Unmount(points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", points[i], err)
		}
	}
	// The caller will remove the directory, but must not remove what is in a mount.
	if points, err = List(dir); err != nil {
		return err
	}
	if len(points) > 0 {
		return fmt.Errorf("unmount %s: %w", points[0], unix.EBUSY)
	}
	return nil
}

// List returns the mount points that are dir or below it, in the order in which they
// were mounted.
func List(dir string) ([]string, error) {
	dir = filepath.Clean(dir)
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	var points []string
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20) // overlay mounts have long options
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		if p := unescape(fields[4]); p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/") {
			points = append(points, p)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return points, nil
}

// unescape decodes the octal escapes of spaces, tabs, line breaks and backslashes
// (proc_pid_mountinfo(5)).
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
