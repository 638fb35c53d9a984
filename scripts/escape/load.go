package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// loads use up a resource of the host, up to a given amount:
//
//	fork N           concurrent processes
//	memory MIB       memory
//	disk MIB         a file, which is then removed
//	connect ADDR N   concurrent connections
//	requests ADDR N  requests that the proxy refuses and logs
//	output MIB       standard output
//
// They return how much they used before an error or the end. load prints both,
// except after "output".
var loads = map[string]func(args []string, n int, out io.Writer) (int, error){
	"fork":     func(_ []string, n int, _ io.Writer) (int, error) { return fork(n) },
	"memory":   func(_ []string, n int, out io.Writer) (int, error) { return memory(n, out), nil },
	"disk":     func(_ []string, n int, _ io.Writer) (int, error) { return disk(n) },
	"connect":  func(args []string, n int, _ io.Writer) (int, error) { return connections(args[0], n) },
	"requests": func(args []string, n int, _ io.Writer) (int, error) { return requests(args[0], n) },
	"output":   func(_ []string, n int, out io.Writer) (int, error) { return output(n, out) },
}

func load(name string, args []string, out io.Writer) error {
	n, err := strconv.Atoi(args[len(args)-1])
	if err != nil {
		return fmt.Errorf("invalid amount: %w", err)
	}
	used, err := loads[name](args, n, out)
	if name == "output" {
		return nil
	}
	_, err = fmt.Fprintf(out, "%d %v\n", used, err)
	return err
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

// memory prints its progress, because the kernel may kill it.
func memory(n int, out io.Writer) int {
	var held [][]byte
	for i := range n {
		block := make([]byte, 1<<20)
		for j := 0; j < len(block); j += 4096 {
			block[j] = 1
		}
		if held = append(held, block); i%64 == 0 {
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
		c, err := net.DialTimeout("tcp", addr, timeout)
		if err != nil {
			return i, err
		}
		held = append(held, c)
	}
	time.Sleep(2 * time.Second) // keep the load up while the suite checks other bottles
	return n, nil
}

func requests(addr string, n int) (int, error) {
	c, err := net.DialTimeout("tcp", addr, timeout)
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

func output(n int, out io.Writer) (int, error) {
	block := []byte(strings.Repeat("escape output \n", 1<<16))
	for i := range n {
		if _, err := out.Write(block); err != nil {
			return i, err
		}
	}
	return n, nil
}
