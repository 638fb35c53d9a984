package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// memory searches all memory of a bottle's sandbox: that of its processes on the
// host, and the file in which gVisor keeps the guest's memory.
func (s *search) memory(bottle string) (found []find) {
	s.t.Helper()
	processes, files := 0, 0
	for pid, argv := range processArgs(s.t) {
		if !strings.Contains(argv, bottle) || !strings.Contains(argv, "runsc-sandbox") && !strings.Contains(argv, "runsc-gofer") {
			continue
		}
		processes++
		found = append(found, s.ownMemory(pid)...)
		more, n := s.guestMemory(pid)
		found = append(found, more...)
		files += n
	}
	if processes < 2 || files < 1 {
		s.t.Errorf("%d processes and %d files of guest memory were searched: there are two and one", processes, files)
	}
	return found
}

// ownMemory is what a process has written to pages of its own (proc(5), maps).
func (s *search) ownMemory(pid int) (found []find) {
	s.t.Helper()
	proc := fmt.Sprintf("/proc/%d", pid)
	mem, err := os.Open(filepath.Join(proc, "mem"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	for line := range strings.Lines(readProc(s.t, pid, "maps")) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			s.t.Fatalf("%q: %v", line, err)
		}
		if strings.HasPrefix(mode, "rw-p") {
			// Unreadable memory is unmapped or not mapped yet.
			found = append(found, s.in("memory of "+proc, io.NewSectionReader(mem, int64(from), int64(to-from)))...)
		}
	}
	return found
}

// guestMemory is what is written of the files that a process has no name for.
func (s *search) guestMemory(pid int) (found []find, files int) {
	s.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if to, err := os.Readlink(path); err != nil || !strings.Contains(to, "memfd:") && !strings.Contains(to, "runsc-memory") {
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			s.t.Fatal(err)
		}
		files++
		found = append(found, s.written("guest memory "+path, f)...)
		_ = f.Close()
	}
	return found, files
}

// written reads the parts of a file that are not holes.
func (s *search) written(place string, f *os.File) (found []find) {
	s.t.Helper()
	for at := int64(0); ; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) {
			return found
		}
		if err != nil {
			s.t.Fatal(err)
		}
		if at, err = unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE); err != nil {
			s.t.Fatal(err)
		}
		found = append(found, s.in(place, bufio.NewReader(io.NewSectionReader(f, begin, at-begin)))...)
	}
}

// TestSSHKeyInMemory searches the sandbox's memory for a private key while its
// agent signs, and afterwards. The control is a value that a session received.
func TestSSHKeyInMemory(t *testing.T) {
	leakcheck.Check(t)
	o := newSSHOwner(t, "")
	l := o.start("claude-bottle-memory")
	s := newSearch(t)
	s.add("key", string(o.private.Seed()))
	s.add("key's file", o.secret)
	const planted = "planted-in-a-session-0123456789"
	s.add("control", planted)
	control := begin(t, o.command("exec", "-e", "PLANTED="+planted, l.name, "sh", "-c", "echo ready; cat"), l.name)
	o.exec(l.name, "sh", "-c", "git ls-remote work:demo.git HEAD | wc -l").want(t, 0, "1\n")
	there := false
	for _, f := range s.memory(l.name) {
		if !strings.HasPrefix(f.form, "control,") {
			t.Errorf("%s: %s", f.place, f.form)
		}
		there = there || strings.HasPrefix(f.form, "control,")
	}
	if !there {
		t.Error("what a session was given is not found in memory, so that the search shows nothing")
	}
	if code := control.end(); code != 0 {
		t.Errorf("the session: exit %d", code)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}
