package confine

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// attempts are what a confined process tries, in a directory with allowed/file,
// allowed/writable, other/file and an abstract socket of that name.
var attempts = []struct {
	name    string
	allowed bool
	abi     int // the version of Landlock that refuses it
	try     func(dir string) error
}{
	{"read", true, 1, func(dir string) error { return open(dir+"/allowed/file", os.O_RDONLY) }},
	{"read a file that was made later", true, 1, func(dir string) error { return open(dir+"/allowed/later", os.O_RDONLY) }},
	{"list", true, 1, func(dir string) error { _, err := os.ReadDir(dir + "/allowed"); return err }},
	{"change", true, 1, func(dir string) error { return open(dir+"/writable/new", os.O_WRONLY|os.O_CREATE) }},
	{"rename", true, 1, func(dir string) error { return os.Rename(dir+"/writable/new", dir+"/writable/new.1") }},
	{"shorten", true, 1, func(dir string) error { return os.Truncate(dir+"/writable/new.1", 0) }},
	{"remove", true, 1, func(dir string) error { return os.Remove(dir + "/writable/new.1") }},
	{"connect", true, 1, func(dir string) error { return dial("tcp", mustRead(dir+"/allowed/address")) }},

	{"read another file", false, 1, func(dir string) error { return open(dir+"/other/file", os.O_RDONLY) }},
	{"follow a link out", false, 1, func(dir string) error { return open(dir+"/allowed/link", os.O_RDONLY) }},
	{"list another directory", false, 1, func(dir string) error { _, err := os.ReadDir(dir + "/other"); return err }},
	{"change what may be read", false, 1, func(dir string) error { return open(dir+"/allowed/file", os.O_WRONLY) }},
	{"create elsewhere", false, 1, func(dir string) error { return open(dir+"/other/new", os.O_WRONLY|os.O_CREATE) }},
	{"move out", false, 1, func(dir string) error {
		return errors.Join(open(dir+"/writable/moved", os.O_WRONLY|os.O_CREATE), os.Rename(dir+"/writable/moved", dir+"/other/moved"))
	}},
	{"execute", false, 1, func(string) error { return exec.Command("/bin/true").Run() }},
	{"execute its own file", false, 1, func(dir string) error { return exec.Command(dir + "/writable/program").Run() }},
	{"an abstract socket", false, 6, func(dir string) error { return dial("unix", "@"+dir) }},
	{"a signal", false, 6, func(string) error { return syscall.Kill(os.Getppid(), 0) }},
}

func open(path string, flags int) error {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

func dial(network, address string) error {
	c, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	return c.Close()
}

func mustRead(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	return string(data)
}

const dirVariable = "CONFINE_TEST_DIR"

// TestMain is also the process that tries the attempts and prints those that succeed.
func TestMain(m *testing.M) {
	dir := os.Getenv(dirVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	if len(os.Args) > 1 && os.Args[1] == "confined" {
		if err := Paths([]string{dir + "/allowed", dir + "/allowed/file", dir + "/missing"}, []string{dir + "/writable"}); err != nil {
			panic(err)
		}
	}
	if _, err := os.NewFile(3, "open").WriteString("x"); err == nil {
		fmt.Println("open descriptor")
	}
	for _, a := range attempts {
		if err := a.try(dir); err == nil {
			fmt.Println(a.name)
		}
	}
}

// TestPaths: a confined process can do what it may and nothing else. The control is the
// same process without confinement, which can do all.
func TestPaths(t *testing.T) {
	for _, confined := range []bool{false, true} {
		dir := t.TempDir()
		for _, d := range []string{"allowed", "other", "writable"} {
			if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		abstract, err := net.Listen("unix", "@"+dir)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = abstract.Close() }()
		program := mustRead("/bin/true")
		for name, text := range map[string]string{
			"allowed/file": "x", "allowed/later": "x", "allowed/address": l.Addr().String(), "other/file": "x", "writable/program": program,
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("../other/file", filepath.Join(dir, "allowed/link")); err != nil {
			t.Fatal(err)
		}
		opened, err := os.Create(filepath.Join(dir, "other/open"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = opened.Close() }()
		mode := "free"
		if confined {
			mode = "confined"
		}
		cmd := exec.Command("/proc/self/exe", mode)
		cmd.Env = append(os.Environ(), dirVariable+"="+dir)
		cmd.ExtraFiles = []*os.File{opened}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", mode, err, out)
		}
		did := map[string]bool{}
		for line := range strings.Lines(string(out)) {
			did[strings.TrimSpace(line)] = true
		}
		if !did["open descriptor"] {
			t.Errorf("%s: an open descriptor could not be used", mode)
		}
		for _, a := range attempts {
			if want := !confined || a.allowed || ABI() < a.abi; did[a.name] != want {
				t.Errorf("%s: %s: %v, want %v (Landlock %d)", mode, a.name, did[a.name], want, ABI())
			}
		}
	}
}
