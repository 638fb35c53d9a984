package guest

import "golang.org/x/sys/unix"

// waitChild waits for a change of a child's state, which it leaves to be collected.
func waitChild(pid int) error {
	return unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT, nil)
}
