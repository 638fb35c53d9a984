package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/caller"
)

// Some calls of this program are made by containerd and its shims, and do as root what
// their arguments say: execute gVisor's shim, run a proxy, write a log file. A user whom
// sudo lets run bottle must not make them.

// refuseInternal rejects a call of a command that only containerd and its shims make.
// They start it without the variables of sudo.
func refuseInternal(cmd *cobra.Command, _ []string) error {
	if caller.Current().UID != 0 && os.Geteuid() == 0 {
		return internalCall(fmt.Sprintf(textInternalCommand, cmd.CommandPath()))
	}
	return nil
}

// refuseOutsidePod rejects a call of a command that only the pods of an export make, by a
// user whom sudo lets run bottle.
func refuseOutsidePod(cmd *cobra.Command, args []string) error {
	if refuseInternal(cmd, args) != nil {
		return internalCall(fmt.Sprintf(textPodCommand, cmd.CommandPath()))
	}
	return nil
}

// internalCall is the refusal of such a call.
type internalCall string

func (c internalCall) Error() string { return string(c) }

// shimAllowed reports whether this process may execute the shim. It inherits the
// variables of sudo if containerd itself was started with sudo.
func shimAllowed() error {
	if caller.Current().UID == 0 || os.Geteuid() != 0 || startedByContainerd() {
		return nil
	}
	return internalCall(textShimCommand)
}

// startedByContainerd reports whether the parent is root's containerd.
func startedByContainerd() bool {
	parent := fmt.Sprintf("/proc/%d", os.Getppid())
	var st unix.Stat_t
	if err := unix.Stat(parent, &st); err != nil || st.Uid != 0 {
		return false
	}
	exe, err := os.Readlink(parent + "/exe")
	return err == nil && filepath.Base(exe) == "containerd"
}
