// Package bytesearch searches the test host for values, in every form in which they are
// likely to be written: files, processes, memory and containerd's objects. It is for tests
// that run as root on the test host.
package bytesearch

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Search looks for values.
type Search struct {
	t      *testing.T
	since  time.Time // when the first of the values was made
	needle map[uint16][]form
	window int // bytes, one less than the longest form has
}

// form is an encoding of a value.
type form struct {
	name  string
	bytes []byte
}

// Find is where a value was found: a file, or a description such as "argv of 12". The form
// begins with the value's name and a comma.
type Find struct{ Place, Form string }

// New returns a search for values that are made later: files on disk that have not changed
// since now are left out.
func New(t *testing.T) *Search {
	return &Search{t: t, since: time.Now(), needle: map[uint16][]form{}}
}

// Add has a value looked for, which must be new.
func (s *Search) Add(name, value string) {
	s.t.Helper()
	for how, text := range encodings(value) {
		if len(text) < 16 {
			s.t.Fatalf("%s: %s %q is too short to be found by", name, how, text)
		}
		key := uint16(text[0])<<8 | uint16(text[1])
		s.needle[key] = append(s.needle[key], form{name + ", " + how, []byte(text)})
		s.window = max(s.window, len(text)-1)
	}
}

func encodings(value string) map[string]string {
	quoted := strconv.Quote(value)
	js, _ := json.Marshal(value) // a string cannot fail
	every := ""
	for _, b := range []byte(value) {
		every += fmt.Sprintf("%%%02X", b)
	}
	out := map[string]string{
		"raw": value, "Go-quoted": quoted[1 : len(quoted)-1], "JSON": string(js[1 : len(js)-1]),
		"hex": hex.EncodeToString([]byte(value)), "HEX": strings.ToUpper(hex.EncodeToString([]byte(value))),
		"URL query": url.QueryEscape(value), "URL path": url.PathEscape(value), "URL, every byte": every,
	}
	for name, enc := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
		for shift := range 3 {
			text := enc.EncodeToString(append(make([]byte, shift), value...))
			// The first and last characters depend on the bytes around the value.
			begin, end := []int{0, 2, 3}[shift], (shift+len(value))*8/6
			out[fmt.Sprintf("%s at %d", name, shift)] = text[begin:end]
		}
	}
	return out
}

// In finds forms in what a reader yields; place is for the result.
func (s *Search) In(place string, r io.Reader) (found []Find) {
	buf := make([]byte, 1<<20+s.window)
	kept := 0
	for {
		n, err := io.ReadFull(r, buf[kept:])
		text := buf[:kept+n]
		found = append(found, s.match(place, text)...)
		if err != nil {
			return found
		}
		kept = copy(buf, text[len(text)-s.window:])
	}
}

func (s *Search) match(place string, text []byte) (found []Find) {
	var first [1 << 16 / 64]uint64
	for key := range s.needle {
		first[key/64] |= 1 << (key % 64)
	}
	for i := 0; i+1 < len(text); i++ {
		key := uint16(text[i])<<8 | uint16(text[i+1])
		if first[key/64]&(1<<(key%64)) == 0 {
			continue
		}
		for _, f := range s.needle[key] {
			if bytes.HasPrefix(text[i:], f.bytes) {
				found = append(found, Find{place, f.name})
			}
		}
	}
	return found
}

// Everywhere searches the complete host: processes, files and containerd's objects;
// and further texts by their description.
func (s *Search) Everywhere(texts map[string]string) []Find {
	s.t.Helper()
	found := s.Processes()
	for _, root := range s.Roots() {
		found = append(found, s.Files(root)...)
	}
	found = append(found, s.containerd()...)
	for place, text := range texts {
		found = append(found, s.In(place, strings.NewReader(text))...)
	}
	return slices.Compact(found)
}

// Roots are the directories that anything of bottle, containerd or the test host
// writes to. None is in another.
func (s *Search) Roots() []string {
	state := "/var/lib/bottle"
	if dir := os.Getenv("BOTTLE_STATE_DIR"); dir != "" {
		state = dir
	}
	return []string{
		"/run", // bottle's and containerd's state, the test host's logs
		filepath.Join(os.Getenv("LAB_DISK"), "containerd"), // content, snapshots, database
		state, "/tmp", "/var/tmp", "/dev/shm",
	}
}

// Processes looks at the argv and the environ of every process of the host. What
// runs in a sandbox is none of them under gVisor.
func (s *Search) Processes() (found []Find) {
	s.t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		s.t.Error(err)
		return nil
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		owner := memoryOwner(e.Name())
		for what, file := range map[string]string{"argv": "cmdline", "environ": "environ"} {
			data, err := os.ReadFile(filepath.Join("/proc", e.Name(), file))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
				continue // it has ended
			}
			if err != nil {
				s.t.Errorf("a process hides from the search: %v", err)
			}
			found = append(found, s.match(what+" of "+owner, data)...)
		}
	}
	return found
}

// memoryOwner is whose argv and environ are shown for a process: between fork and
// exec it has those of its parent's, which is the same memory.
func memoryOwner(pid string) string {
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	_, rest, ok := bytes.Cut(stat, []byte(") ")) // proc_pid_stat(5): state, parent
	if err != nil || !ok || len(bytes.Fields(rest)) < 2 {
		return pid
	}
	parent := string(bytes.Fields(rest)[1])
	own, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
	of, perr := os.ReadFile(filepath.Join("/proc", parent, "cmdline"))
	if err != nil || perr != nil || len(own) == 0 || !bytes.Equal(own, of) {
		return pid
	}
	return parent
}

// Files searches every regular file in a directory. Outside of tmpfs it leaves out
// Files that have not changed since the values were generated: the kernel keeps that
// time (inode(7), ctime), and nobody can set it.
func (s *Search) Files(root string) (found []Find) {
	s.t.Helper()
	tmpfs := map[uint64]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		memory, known := tmpfs[st.Dev]
		if !known {
			memory = IsTmpfs(path)
			tmpfs[st.Dev] = memory
		}
		if !memory && time.Unix(st.Ctim.Unix()).Before(s.since.Add(-2*time.Second)) {
			return nil
		}
		more, err := s.file(path)
		found = append(found, more...)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.t.Errorf("search %s: %v", root, err)
	}
	return found
}

// IsTmpfs reports whether a file is in memory.
func IsTmpfs(path string) bool {
	var st syscall.Statfs_t
	return syscall.Statfs(path, &st) == nil && st.Type == 0x01021994 // TMPFS_MAGIC, linux/magic.h
}

// file looks at a file as it is, and at what is in it if it is compressed, as
// layers of images are.
func (s *Search) file(path string) ([]Find, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	found := s.In(path, f)
	_, err = f.Seek(0, io.SeekStart)
	if errors.Is(err, syscall.ESPIPE) {
		return found, nil // a namespace's
	}
	if err != nil {
		return found, err
	}
	magic := make([]byte, 4)
	if n, _ := io.ReadFull(f, magic); n < len(magic) {
		return found, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return found, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		if z, err := gzip.NewReader(f); err == nil {
			found = append(found, s.In(path+" (unpacked)", z)...)
		}
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		if z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1)); err == nil {
			found = append(found, s.In(path+" (unpacked)", z)...)
			z.Close()
		}
	}
	return found, nil
}

// containerd searches ctr's output about containers, tasks, snapshots, images and
// leases.
func (s *Search) containerd() (found []Find) {
	s.t.Helper()
	ctrOutput := func(args ...string) string {
		out, err := exec.Command("ctr", args...).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "not found") {
			s.t.Errorf("ctr %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		found = append(found, s.In("ctr "+strings.Join(args, " "), bytes.NewReader(out))...)
		return string(out)
	}
	for _, id := range strings.Fields(ctrOutput("containers", "ls", "-q")) {
		ctrOutput("containers", "info", id)
	}
	for _, id := range strings.Fields(ctrOutput("tasks", "ls", "-q")) {
		ctrOutput("tasks", "ps", id)
		ctrOutput("tasks", "metrics", "--format", "json", id)
	}
	ctrOutput("tasks", "ls")
	ctrOutput("containers", "ls")
	ctrOutput("snapshots", "ls")
	ctrOutput("images", "ls")
	ctrOutput("content", "ls")
	ctrOutput("leases", "ls")
	return found
}

// Sample searches all processes repeatedly until stop is called, which returns the
// findings and the number of searches.
func (s *Search) Sample() (stop func() ([]Find, int)) {
	end := make(chan struct{})
	done := make(chan struct{})
	var found []Find
	looks := 0
	go func() {
		defer close(done)
		for tick := time.NewTicker(15 * time.Millisecond); ; looks++ {
			found = append(found, s.Processes()...)
			select {
			case <-end:
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	}()
	return func() ([]Find, int) {
		close(end)
		<-done
		return found, looks
	}
}
