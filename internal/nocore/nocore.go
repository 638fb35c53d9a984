// Package nocore keeps secrets in the memory of this process out of core dumps.
package nocore

import "golang.org/x/sys/unix"

// Disable keeps secrets of this process out of core files, and other
// processes of the same user from reading its memory. The limit does not apply to
// a core that is piped to a program (core(5)), but a process that is not dumpable
// produces none (prctl(2)). Neither call can fail for the calling process.
func Disable() {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
