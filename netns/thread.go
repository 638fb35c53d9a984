package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ownNS is the network namespace of the opening thread. /proc/self/ns/net would be
// that of the process's main thread.
const ownNS = "/proc/thread-self/ns/net"

// Do runs fn on a thread in the network namespace pinned at nsPath. Sockets that fn
// opens and programs that it starts are in that namespace; goroutines that it starts
// are not. fn must not call runtime.Goexit.
func Do(nsPath string, fn func() error) error {
	return onThread(func() error {
		ns, err := unix.Open(nsPath, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open network namespace %s: %w", nsPath, err)
		}
		err = unix.Setns(ns, unix.CLONE_NEWNET)
		_ = unix.Close(ns)
		if err != nil {
			return fmt.Errorf("enter network namespace %s: %w", nsPath, err)
		}
		return fn()
	})
}

// onThread runs fn, which may change the network namespace, on a dedicated thread.
// If the change cannot be reverted the thread ends with its goroutine, so that no
// other goroutine ever runs in the wrong namespace.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(ownNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open the thread's network namespace: %w", err)
			return
		}
		defer func() { _ = unix.Close(home) }()
		err = fn()
		if rerr := unix.Setns(home, unix.CLONE_NEWNET); rerr != nil {
			done <- errors.Join(err, fmt.Errorf("return to the network namespace: %w", rerr))
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// DialIn connects to addr, which must be an IP address and a port, from inside the
// network namespace pinned at nsPath.
func DialIn(ctx context.Context, nsPath, network, addr string) (conn net.Conn, err error) {
	// A name would be resolved by goroutines outside the namespace.
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("dial in %s: %w", nsPath, err)
	}
	err = Do(nsPath, func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// pin creates a network namespace, mounts it on the new file path, which must not
// exist, and runs setup on a thread in it. After an error nothing is left.
func pin(path string, setup func() error) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	_ = f.Close() // it was opened only to create it
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		if err := unix.Mount(ownNS, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("pin network namespace at %s: %w", path, err)
		}
		return setup()
	})
	if err != nil {
		return errors.Join(err, unpin(path))
	}
	return nil
}

// unpin removes the mount and the file that keep a network namespace. It succeeds
// if there are none.
func unpin(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break // not a mount point, or no longer one
		}
		if err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// pinned reports whether a network namespace is pinned at path.
func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
