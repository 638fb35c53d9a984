package leakcheck

import (
	"os/exec"
	"testing"
)

// TestExecutingProcess checks that a process is reported while it executes another
// program, when its arguments are empty for a moment. If the first snapshot missed
// such a process, the second would report it as a leak.
func TestExecutingProcess(t *testing.T) {
	const again = `exec sh -c "$0" "$0"`
	cmd := exec.Command("sh", "-c", again, again)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for range 20000 {
		if commandLine(cmd.Process.Pid) == "" {
			t.Fatal("no arguments for a running process")
		}
	}
}
