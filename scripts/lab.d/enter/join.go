package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

var errNotUp = errors.New("the lab is not up (scripts/lab up)")

// namespaces are listed in the order of joining. The mount namespace is last:
// until then /proc and /sys are the caller's.
var namespaces = []struct {
	name string
	flag int
}{
	{"cgroup", unix.CLONE_NEWCGROUP},
	{"ipc", unix.CLONE_NEWIPC},
	{"uts", unix.CLONE_NEWUTS},
	{"net", unix.CLONE_NEWNET},
	{"pid", unix.CLONE_NEWPID},
	{"mnt", unix.CLONE_NEWNS},
}

// join moves this process into the lab's cgroups and this thread into the lab's
// namespaces. It returns errNotUp if the recorded init process no longer exists.
func join(labDir string) error {
	record, err := os.ReadFile(filepath.Join(labDir, "init"))
	if errors.Is(err, os.ErrNotExist) {
		return errNotUp
	}
	if err != nil {
		return fmt.Errorf("read the lab's init record: %w", err)
	}
	var pid, start string
	if _, err := fmt.Sscan(string(record), &pid, &start); err != nil {
		return fmt.Errorf("parse the lab's init record %s/init: %w", labDir, err)
	}
	fds := make([]int, len(namespaces))
	for i, ns := range namespaces {
		fds[i], err = unix.Open("/proc/"+pid+"/ns/"+ns.name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return errNotUp
		}
		if err != nil {
			return fmt.Errorf("open the lab's %s namespace: %w", ns.name, err)
		}
	}
	// Compared after opening the namespaces, which otherwise could belong to a
	// later process with the same id.
	if now, err := startTime(pid); err != nil || now != start {
		return errNotUp
	}
	if err := joinCgroups(filepath.Join(labDir, "cgroups")); err != nil {
		return err
	}
	// setns(2): a thread that shares file system attributes with another one
	// cannot change its mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system attributes: %w", err)
	}
	for i, ns := range namespaces {
		if err := unix.Setns(fds[i], ns.flag); err != nil {
			return fmt.Errorf("join the lab's %s namespace: %w", ns.name, err)
		}
	}
	return nil
}

// startTime returns field 22 of /proc/PID/stat, in clock ticks since boot
// (proc(5)).
func startTime(pid string) (string, error) {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return "", err
	}
	// Field 2 is the name in parentheses and may contain spaces.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const startField = 22 - 3
	if len(fields) <= startField {
		return "", fmt.Errorf("/proc/%s/stat: %d fields after the name", pid, len(fields))
	}
	return string(fields[startField]), nil
}

// joinCgroups moves this process into each cgroup listed in file.
func joinCgroups(file string) error {
	list, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the lab's cgroups: %w", err)
	}
	for dir := range strings.FieldsSeq(string(list)) {
		// "0" means the writing process (cgroups(7)).
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join the lab's cgroup: %w", err)
		}
	}
	return nil
}
