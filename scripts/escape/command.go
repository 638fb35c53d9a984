package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// commands inspect the sandbox or control repeated attempts:
//
//	cat FILE           print a file
//	ls PATH...         print type, mode, link target and entries of files
//	sockets FAMILY...  print the address families of which a socket can be created
//	repeat FILE        repeat attempts (started by a batch with a results file)
//	stop FILE          stop repeating attempts
//	wait               wait for 20 seconds (started by the load "fork")
var commands = map[string]func(args []string, out io.Writer) error{
	"cat":     func(args []string, out io.Writer) error { return cat(args[0], out) },
	"ls":      ls,
	"sockets": sockets,
	"repeat":  func(args []string, _ io.Writer) error { return repeatAttempts(args[0]) },
	"stop":    func(args []string, _ io.Writer) error { return stopRepeating(args[0]) },
	"wait":    func([]string, io.Writer) error { time.Sleep(20 * time.Second); return nil },
}

// command runs a command or a load and returns the exit code.
func command(args []string, stdout, stderr io.Writer) int {
	name, rest := args[0], args[1:]
	var err error
	switch {
	case commands[name] == nil && loads[name] == nil:
		_, _ = fmt.Fprintln(stderr, "escape: unknown command", name)
		return 2
	case name != "wait" && len(rest) == 0:
		_, _ = fmt.Fprintln(stderr, "escape: missing argument for", name)
		return 2
	case commands[name] != nil:
		err = commands[name](rest, stdout)
	default:
		err = load(name, rest, stdout)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "escape:", err)
		return 1
	}
	return 0
}

func cat(file string, out io.Writer) error {
	data, err := os.ReadFile(file)
	if err == nil {
		_, err = out.Write(data)
	}
	return err
}

func ls(paths []string, out io.Writer) error {
	for _, path := range paths {
		fi, err := os.Lstat(path)
		if err != nil {
			_, _ = fmt.Fprintln(out, path, err)
			continue
		}
		target, _ := os.Readlink(path) // empty unless it is a link
		entries, _ := os.ReadDir(path) // empty unless it is a directory
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if _, err := fmt.Fprintln(out, path, fi.Mode(), target, names); err != nil {
			return err
		}
	}
	return nil
}

// sockets prints those of the numbered address families of which a socket can be
// created.
func sockets(families []string, out io.Writer) error {
	for _, text := range families {
		family, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
		if errors.Is(err, unix.ESOCKTNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) {
			fd, err = unix.Socket(family, unix.SOCK_SEQPACKET, 0)
		}
		if err != nil {
			continue
		}
		_ = unix.Close(fd)
		if _, err := fmt.Fprintln(out, family); err != nil {
			return err
		}
	}
	return nil
}
