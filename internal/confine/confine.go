// Package confine takes away from a process what it does not need of the host, with
// Landlock (landlock(7)): a fault in it then reads no other files and runs no program.
package confine

import (
	"fmt"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// Paths confines this process, for good, to reading the files and directories read and to
// changing what is in the directories write; it can execute nothing. Missing files are
// ignored. Descriptors that are open stay usable. Signals and abstract sockets reach only
// processes that are confined with it. A kernel without Landlock confines nothing, and an
// old one confines less; ABI tells.
func Paths(read, write []string) error {
	rules := []landlock.Rule{landlock.RWDirs(write...)}
	for _, path := range read {
		rights := landlock.AccessFSSet(unix.LANDLOCK_ACCESS_FS_READ_FILE)
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			rights |= unix.LANDLOCK_ACCESS_FS_READ_DIR
		}
		rules = append(rules, landlock.PathAccess(rights, path).IgnoreIfMissing())
	}
	// The last version that the tests have run with. A later one could restrict what is
	// not known here.
	config := landlock.V6.BestEffort()
	if err := config.RestrictPaths(rules...); err != nil {
		return fmt.Errorf("confine to %v and %v: %w", read, write, err)
	}
	if err := config.RestrictScoped(); err != nil {
		return fmt.Errorf("confine signals and sockets: %w", err)
	}
	return nil
}

// ABI returns the kernel's version of Landlock, 0 if it has none or does not use it
// (landlock_create_ruleset(2)).
func ABI() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}
