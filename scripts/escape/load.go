package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// load does what uses a host up, bounded, and says how far it came:
//
//	fork N           processes that live at the same time
//	memory MIB       touched
//	disk MIB         written to a file, which is removed
//	connect ADDR N   connections held open at the same time
//	requests ADDR N  requests that the proxy refuses and logs
//	chatter MIB      written to standard output
//
// "sockets FAMILY..." tells which may be had, "look PATH..." what is there, and "show FILE" what is in it. A vigil's end
// is "stop FILE"; "keep" is its process.
func load(args []string, out io.Writer) int {
	switch args[0] {
	case "wait":
		time.Sleep(20 * time.Second)
		return 0
	case "look":
		look(args[1:], out)
		return 0
	case "sockets":
		return exitCode(sockets(args[1:], out))
	case "keep":
		return exitCode(keep(args[1]))
	case "show":
		return exitCode(show(args[1], out))
	case "stop":
		return exitCode(stop(args[1]))
	}
	n, err := strconv.Atoi(args[len(args)-1])
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "escape: not a number:", args[len(args)-1])
		return 2
	}
	did := 0
	switch args[0] {
	case "fork":
		did, err = fork(n)
	case "memory":
		did = memory(n, out)
	case "disk":
		did, err = disk(n)
	case "connect":
		did, err = connections(args[1], n)
	case "requests":
		did, err = requests(args[1], n)
	case "chatter":
		did, err = chatter(out, n)
	}
	if args[0] != "chatter" {
		_, _ = fmt.Fprintf(out, "%d %v\n", did, err)
	}
	return 0
}

// sockets tells which families of sockets may be had, of those that are numbered.
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

// look tells what is at some paths, and what is in those that are folders.
func look(paths []string, out io.Writer) {
	for _, path := range paths {
		fi, err := os.Lstat(path)
		if err != nil {
			_, _ = fmt.Fprintln(out, path, err)
			continue
		}
		target, _ := os.Readlink(path) // of a link
		entries, _ := os.ReadDir(path) // of a folder
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		_, _ = fmt.Fprintln(out, path, fi.Mode(), target, names)
	}
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintln(os.Stderr, "escape:", err)
	return 1
}

func fork(n int) (int, error) {
	var children []*exec.Cmd
	defer func() {
		for _, c := range children {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	for i := range n {
		c := exec.Command("/proc/self/exe", "wait")
		if err := c.Start(); err != nil {
			return i, err
		}
		children = append(children, c)
	}
	return n, nil
}

func memory(n int, out io.Writer) int {
	var held [][]byte
	for i := range n {
		page := make([]byte, 1<<20)
		for j := 0; j < len(page); j += 4096 {
			page[j] = 1
		}
		if held = append(held, page); i%64 == 0 {
			_, _ = fmt.Fprintln(out, i)
		}
	}
	return len(held)
}

func disk(n int) (int, error) {
	f, err := os.Create(filepath.Join("/", "escape-filler"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	defer func() { _ = f.Close() }()
	block := []byte(strings.Repeat("0123456789abcdef", 1<<16))
	for i := range n {
		if _, err := f.Write(block); err != nil {
			return i, err
		}
	}
	return n, nil
}

func connections(addr string, n int) (int, error) {
	var held []net.Conn
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	for i := range n {
		c, err := net.DialTimeout("tcp", addr, limit)
		if err != nil {
			return i, err
		}
		held = append(held, c)
	}
	time.Sleep(2 * time.Second) // the others look at the proxy meanwhile
	return n, nil
}

func requests(addr string, n int) (int, error) {
	c, err := net.DialTimeout("tcp", addr, limit)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	go func() { _, _ = io.Copy(io.Discard, c) }()
	long := strings.Repeat("x", 1500)
	for i := range n {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := fmt.Fprintf(c, "GET http://refused.test/%s HTTP/1.1\r\nHost: refused.test\r\n\r\n", long); err != nil {
			return i, err
		}
	}
	return n, nil
}

func chatter(out io.Writer, n int) (int, error) {
	block := []byte(strings.Repeat("escape chatter\n", 1<<16))
	for i := range n {
		if _, err := out.Write(block); err != nil {
			return i, err
		}
	}
	return n, nil
}
