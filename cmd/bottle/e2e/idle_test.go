package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/labtest"
)

// TestIdleMemory: soon after a session began, bottle run has released most of its program,
// and the session still works.
func TestIdleMemory(t *testing.T) {
	u := newUser(t)
	const name = "claude-bottle-idle"
	l := u.start(name)
	info, err := os.Stat(labtest.Program(t))
	if err != nil {
		t.Fatal(err)
	}
	mapped := func() (kib int64) {
		for line := range strings.Lines(readProc(t, l.cmd.Process.Pid, "status")) {
			if _, err := fmt.Sscanf(line, "RssFile: %d kB", &kib); err == nil {
				return kib
			}
		}
		t.Fatal("no RssFile")
		return 0
	}
	// A launch uses more than half of the program.
	within(t, func() bool { return mapped() < info.Size()>>10/4 })
	if _, err := l.stdin.Write([]byte("more\n")); err != nil {
		t.Fatal(err)
	}
	if line, err := l.out.ReadString('\n'); line != "more\n" {
		t.Errorf("the session: %q, %v", line, err)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d: %s", code, l.errs)
	}
}
