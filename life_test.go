package bottle

import (
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestNothingLeftInProcess: after the lives of bottles, with sessions, a program that uses
// this package has the goroutines and descriptors that it had before.
func TestNothingLeftInProcess(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	p := faultScene(t, e)
	life := func() {
		b, err := e.Launch(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		if out, code := output(t, e, b.Name, "echo", "hi"); code != 0 || out != "hi\n" {
			t.Errorf("exit %d, %q", code, out)
		}
		remove(t, b)
	}
	life() // opens what the process keeps, such as the runtime's poller
	goroutines, files := goruntime.NumGoroutine(), descriptors(t)
	for range 3 {
		life()
	}
	for end := time.Now().Add(10 * time.Second); goruntime.NumGoroutine() > goroutines || len(descriptors(t)) > len(files); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			var text strings.Builder
			_ = pprof.Lookup("goroutine").WriteTo(&text, 1)
			t.Fatalf("%d goroutines before and %d after; descriptors %v before and %v after\n%s",
				goroutines, goruntime.NumGoroutine(), files, descriptors(t), &text)
		}
	}
}

// descriptors lists the open descriptors of this process.
func descriptors(t *testing.T) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range links {
		if target, err := os.Readlink(l); err == nil { // the directory itself is closed by now
			out = append(out, fmt.Sprintf("%s %s", filepath.Base(l), target))
		}
	}
	slices.Sort(out)
	return out
}
