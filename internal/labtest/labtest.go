// Package labtest holds what tests on the test host (scripts/lab) share: the
// bottle program built from this checkout, images, registries, a second
// containerd, and the log of the world that surrounds the host.
package labtest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

var (
	dir, source string // of the program, and of its main package
	build       = sync.OnceValue(buildProgram)
)

// Main runs a package's tests, removes the program built by Program, and returns
// the exit code.
func Main(m *testing.M) int {
	code := m.Run()
	if dir != "" {
		if err := os.RemoveAll(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// Program returns the path of the bottle program built from this checkout. It
// fails the test outside the test host.
func Program(t testing.TB) string {
	t.Helper()
	if os.Getenv("LAB_ID") == "" {
		t.Fatal("this test runs on the test host: sudo make test, or scripts/lab up and scripts/lab exec -- go test …")
	}
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "bottle")
}

// Embedded returns a function that opens a program that bottle's program contains.
func Embedded(t testing.TB, name string) func() (io.ReadCloser, error) {
	t.Helper()
	Program(t)
	file := filepath.Join(source, "embedded", name+"-"+runtime.GOARCH)
	return func() (io.ReadCloser, error) { return os.Open(file) }
}

func buildProgram() (err error) {
	if dir, err = os.MkdirTemp("", "bottle-test-"); err != nil {
		return err
	}
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("find the module's directory: %w", err)
	}
	source = filepath.Join(strings.TrimSpace(string(root)), "cmd", "bottle")
	// The same steps as in `make build`: first the programs that bottle embeds. Static,
	// because the proxy's root file system holds nothing else.
	for _, b := range [][2]string{
		{filepath.Join(source, "embedded", "guest-"+runtime.GOARCH), "./guest/program"},
		{filepath.Join(source, "embedded", "proxy-"+runtime.GOARCH), "../../cmd/bottle/proxyprogram"},
		{filepath.Join(source, "embedded", "runsc-"+runtime.GOARCH), "./runscprogram"},
		{filepath.Join(dir, "bottle"), "."},
	} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", b[0], b[1])
		cmd.Dir = source
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build bottle: %w\n%s", err, out)
		}
	}
	return nil
}

// WorldEvent is a line of the world's log: traffic that reached one of its
// addresses (scripts/world).
type WorldEvent struct {
	Event string `json:"event"`
	Proto string `json:"proto"`
	Type  string `json:"type"`
	Local string `json:"local"`
	Host  string `json:"host"`
	Path  string `json:"path"`
	Name  string `json:"name"`
	Text  string `json:"text"`
}

// World returns a function that returns the traffic that has reached the world's
// addresses since the call of World.
func World(t testing.TB) (since func() []WorldEvent) {
	t.Helper()
	file := os.Getenv("LAB_VICTIMS")
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatalf("find the world's log: %v", err)
	}
	offset := fi.Size()
	return func() []WorldEvent {
		t.Helper()
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("read the world's log: %v", err)
		}
		var out []WorldEvent
		for line := range strings.Lines(string(data[offset:])) {
			var e WorldEvent
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("parse the world's log: %v in %q", err, line)
			}
			out = append(out, e)
		}
		return out
	}
}
