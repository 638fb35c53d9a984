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

// tryOpen opens a file: args are the path and "read" or "write". Nothing is
// written, as some of these files do harm. It has to hold the third argument if
// there is one; "*" is anything.
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
	n, _ := f.Read(buf) // an empty file does not hold it
	if args[2] == "*" && n > 0 {
		return "read", nil
	}
	if string(buf[:n]) != args[2] {
		return "opened", errors.New("it is another file")
	}
	return "read", nil
}

// tryWrite makes or overwrites a file, with the second argument if there is one.
func tryWrite(_ context.Context, _ string, args []string) (string, error) {
	return "written", os.WriteFile(args[0], []byte(append(args, word)[1]), 0o600)
}

// tryMknod makes a device of its own and opens it: args are c or b, major and
// minor.
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
	return "made", unix.Mknod(path, mode|0o600, int(unix.Mkdev(uint32(major), uint32(minor))))
}

// tryMount mounts a file system of the host's in a mount namespace that ends
// with the attempt: args are its type, the source and options, and a path that
// it must show if there is a fourth.
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

// onThread runs fn on a thread that ends with it.
func onThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- fn()
	}()
	return <-done
}

// trySetns joins a namespace that a path names, and must then be in the one
// whose number is given: args are the path and the link's text.
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
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
}

// trySignal asks whether a process of the host's may be sent a signal, without
// sending one: args are its id and its command's name, as the same number may be
// another process's.
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
		return "", errors.New("it is another process")
	}
	return "may be signalled", nil
}
