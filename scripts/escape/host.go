package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// tryOpen opens a file. The arguments are the path, "read" or "write" and, if the
// content matters, the expected content or "*" for any. It never writes, because
// writing to some of these files is harmful.
func tryOpen(_ context.Context, _ string, args []string) (string, error) {
	flag := os.O_RDONLY
	if args[1] == "write" {
		flag = os.O_WRONLY
	}
	f, err := os.OpenFile(args[0], flag|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	if len(args) < 3 {
		return "opened", nil
	}
	buf := make([]byte, 4096)
	n, _ := f.Read(buf) // an error leaves n at 0
	if args[2] == "*" && n > 0 {
		return "read", nil
	}
	if string(buf[:n]) != args[2] {
		return "opened", errors.New("unexpected content: a different file")
	}
	return "read", nil
}

// tryWrite creates or overwrites a file. The arguments are the path and,
// optionally, the content.
func tryWrite(_ context.Context, _ string, args []string) (string, error) {
	return "written", os.WriteFile(args[0], []byte(append(args, payload)[1]), 0o600)
}

// tryMknod creates a device node. The arguments are c or b, the major and the
// minor number.
func tryMknod(_ context.Context, _ string, args []string) (string, error) {
	mode := uint32(unix.S_IFCHR)
	if args[0] == "b" {
		mode = unix.S_IFBLK
	}
	major, _ := strconv.Atoi(args[1])
	minor, _ := strconv.Atoi(args[2])
	dir, err := os.MkdirTemp("", "escape-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "device")
	return "created", unix.Mknod(path, mode|0o600, int(unix.Mkdev(uint32(major), uint32(minor))))
}

// tryMount mounts a file system in a new mount namespace. The arguments are the
// type, the source and the options.
func tryMount(_ context.Context, _ string, args []string) (string, error) {
	dir, err := os.MkdirTemp("", "escape-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	return "mounted", onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make private: %w", err)
		}
		return unix.Mount(args[1], dir, args[0], 0, args[2])
	})
}

// onThread runs fn on a new thread, which then exits.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// trySetns joins a network namespace. The arguments are its path and the expected
// text of the link /proc/thread-self/ns/net.
func trySetns(_ context.Context, _ string, args []string) (string, error) {
	return "joined", onThread(func() error {
		fd, err := unix.Open(args[0], unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return err
		}
		if got, _ := os.Readlink("/proc/thread-self/ns/net"); got != args[1] {
			return fmt.Errorf("joined %s, a different namespace", got)
		}
		return nil
	})
}

// trySignal checks whether it may signal a process of the host, without sending a
// signal. The arguments are the process id and the name of its command, because
// the same id may belong to another process in another PID namespace.
func trySignal(_ context.Context, _ string, args []string) (string, error) {
	pid, err := strconv.Atoi(args[0])
	if err != nil {
		return "", err
	}
	if err := unix.Kill(pid, 0); err != nil {
		return "", err
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "", err
	}
	if string(comm) != args[1]+"\n" {
		return "", errors.New("a different process")
	}
	return "permitted", nil
}
