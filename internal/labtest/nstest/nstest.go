// Package nstest runs a package's tests in a network namespace of their own, where
// they may assign any address. It needs root or, for an ordinary user, a kernel
// that allows user namespaces. It is for tests only.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// insideVar marks the copy of the test in the new namespace.
const insideVar = "BOTTLE_TEST_NAMESPACE"

// Run calls run in a copy of this process in a new network namespace and returns
// the exit code. TestMain calls it, with os.Exit.
func Run(run func() int) int {
	if os.Getenv(insideVar) != "" {
		return run()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), insideVar+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if uid, gid := os.Geteuid(), os.Getegid(); uid != 0 {
		// In a user namespace, the user may create and configure network namespaces.
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the test in a new network namespace (requires root or user namespaces):", err)
		return 1
	}
	return 0
}

// AddAddresses assigns addresses, each with a prefix length, to a link and sets it
// up.
func AddAddresses(link string, addresses ...string) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return err
	}
	for _, a := range addresses {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD // an address is otherwise unusable at first
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, link, err)
		}
	}
	return netlink.LinkSetUp(l)
}
