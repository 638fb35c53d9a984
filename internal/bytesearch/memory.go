package bytesearch

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Memory searches all memory of a bottle's sandbox: that of its processes on the
// host, and the file in which gVisor keeps the guest's memory.
func (s *Search) Memory(bottle string) (found []Find) {
	s.t.Helper()
	processes, files := 0, 0
	for pid, argv := range Arguments(s.t) {
		if !strings.Contains(argv, bottle) || !strings.Contains(argv, "runsc-sandbox") && !strings.Contains(argv, "runsc-gofer") {
			continue
		}
		processes++
		found = append(found, s.OwnMemory(pid)...)
		more, n := s.guestMemory(pid)
		found = append(found, more...)
		files += n
	}
	if processes < 2 || files < 1 {
		s.t.Errorf("%d processes and %d files of guest memory were searched: there are two and one", processes, files)
	}
	return found
}

// OwnMemory is what a process has written to pages of its own (proc(5), maps).
func (s *Search) OwnMemory(pid int) (found []Find) {
	s.t.Helper()
	proc := fmt.Sprintf("/proc/%d", pid)
	mem, err := os.Open(filepath.Join(proc, "mem"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	maps, err := os.ReadFile(filepath.Join(proc, "maps"))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil {
			s.t.Fatalf("%q: %v", line, err)
		}
		if strings.HasPrefix(mode, "rw-p") {
			// Unreadable memory is unmapped or not mapped yet.
			found = append(found, s.In("memory of "+proc, io.NewSectionReader(mem, int64(from), int64(to-from)))...)
		}
	}
	return found
}

// guestMemory is what is written of the files that a process has no name for.
func (s *Search) guestMemory(pid int) (found []Find, files int) {
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
		found = append(found, s.written("memory of the guest in "+path, f)...)
		_ = f.Close()
	}
	return found, files
}

// written reads the parts of a file that are not holes.
func (s *Search) written(place string, f *os.File) (found []Find) {
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
		found = append(found, s.In(place, bufio.NewReader(io.NewSectionReader(f, begin, at-begin)))...)
	}
}

// Arguments returns the arguments of every process.
func Arguments(t *testing.T) map[int]string {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]string{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if data, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")); err == nil {
				out[pid] = strings.ReplaceAll(string(data), "\x00", " ")
			}
		}
	}
	return out
}
