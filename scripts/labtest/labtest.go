// Package labtest is what tests on the test host have in common: bottle's own
// program, built from this checkout, and the log of the world around the host.
package labtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Main builds bottle's program and runs the tests of a package that needs the
// test host. It returns the exit code.
func Main(m *testing.M) int {
	if os.Getenv("LAB_ID") == "" {
		fmt.Fprintln(os.Stderr, "these tests run on the test host: sudo make test, or scripts/lab up and scripts/lab exec -- go test …")
		return 1
	}
	dir, err := os.MkdirTemp("", "bottle-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program = filepath.Join(dir, "bottle")
	// Static, as the proxy's root file system holds nothing else.
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "github.com/bot-bottle/bottle/cmd/bottle")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build bottle: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

var program string

// Program is the path of bottle's program. Main has built it.
func Program() string { return program }

// WorldEvent is one line of the world's log: something that reached one of its
// addresses.
type WorldEvent struct {
	Event string `json:"event"`
	Proto string `json:"proto"`
	Local string `json:"local"`
	Host  string `json:"host"`
	Path  string `json:"path"`
}

// World yields what reaches the world's addresses from now on.
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
				t.Fatalf("the world's log: %v in %q", err, line)
			}
			out = append(out, e)
		}
		return out
	}
}
