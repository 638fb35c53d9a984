package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// outputTimeout bounds what must end immediately.
const outputTimeout = 30 * time.Second

// endless writes until its output is closed.
const endless = "while :; do echo 0123456789012345678901234567890123456789; done"

// fullDisk returns a file on a file system with room for size bytes.
func fullDisk(t *testing.T, size int) *os.File {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	f, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func devFull(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// endsSoon runs a command whose output fails and returns its exit code and messages.
func endsSoon(t *testing.T, cmd *exec.Cmd) (code int, stderr string) {
	t.Helper()
	var errs bytes.Buffer
	if cmd.Stderr == nil {
		cmd.Stderr = &errs
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(outputTimeout):
		t.Errorf("%v has not ended within %s", cmd.Args[1:], outputTimeout)
		_ = abort(cmd.Process)
		<-done
	}
	logStacks(t, errs.String())
	return cmd.ProcessState.ExitCode(), errs.String()
}

// TestOutputFails: an output that cannot be written ends the session immediately, with
// the cause, and the bottle is removed as always. In the control all output arrives.
func TestOutputFails(t *testing.T) {
	const size = 64 << 10
	for _, runtime := range []string{"runsc", "runc"} {
		for _, tt := range []struct {
			name, script string
			out          func(*testing.T) *os.File
		}{
			{"endless to a full device", endless, devFull},
			{"one line to a full device", "echo once; sleep 1000", devFull},
			{"at the end to a full device", "echo once", devFull},
			{"endless to a full disk", endless, func(t *testing.T) *os.File { return fullDisk(t, size) }},
			{"last bytes to a full disk", "head -c 65537 /dev/zero", func(t *testing.T) *os.File { return fullDisk(t, size) }},
		} {
			t.Run(runtime+"/"+tt.name, func(t *testing.T) {
				leakcheck.Check(t)
				u := newUser(t)
				cmd := u.command("run", "sh", "--runtime", runtime, "--proxy", "builtin", "--yes", "--", "-c", tt.script)
				cmd.Stdout = tt.out(t)
				code, errs := endsSoon(t, cmd)
				if code != 125 || !strings.Contains(errs, "bottle: write stdout: no space left on device\n") {
					t.Errorf("exit %d: %s", code, errs)
				}
			})
		}
		t.Run(runtime+"/control", func(t *testing.T) {
			u := newUser(t)
			cmd := u.command("run", "sh", "--runtime", runtime, "--proxy", "builtin", "--yes", "--", "-c", "head -c 65536 /dev/zero")
			out := fullDisk(t, size)
			cmd.Stdout = out
			code, errs := endsSoon(t, cmd)
			if fi, err := out.Stat(); code != 0 || err != nil || fi.Size() != size {
				t.Errorf("exit %d, %v, %v: %s", code, fi, err, errs)
			}
		})
	}
}

// TestExecOutputFails: the same for another session of a bottle, which keeps running.
func TestExecOutputFails(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-output")
	for _, stream := range []string{"stdout", "stderr"} {
		for _, terminal := range []bool{false, true} {
			if terminal && stream == "stderr" {
				continue // a terminal has one stream
			}
			args := []string{"exec", l.name, "sh", "-c", "(" + endless + ") 1>&2"}
			if stream == "stdout" {
				args[4] = endless
			}
			if terminal {
				args = append([]string{"exec", "-t"}, args[1:]...)
			}
			cmd := u.command(args...)
			want := "bottle: write stdout: no space left on device\n"
			if stream == "stdout" {
				cmd.Stdout = devFull(t)
			} else {
				cmd.Stderr, want = devFull(t), ""
			}
			if code, errs := endsSoon(t, cmd); code != 125 || !strings.Contains(errs, want) {
				t.Errorf("%s, terminal %v: exit %d: %s", stream, terminal, code, errs)
			}
		}
	}
	// Nothing of the sessions is left in the bottle.
	r := u.exec(l.name, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c '^while' || true")
	r.want(t, 0, "0\n")
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}

// TestClosedOutput: as other programs, bottle ends silently when the reader of its
// output has gone, but it removes the bottle first.
func TestClosedOutput(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	for _, both := range []bool{false, true} {
		cmd := u.command("run", "sh", "--proxy", "builtin", "--yes", "--", "-c", endless)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = w
		if both {
			cmd.Stderr = w
			_ = r.Close()
		} else {
			go func() {
				_, _ = io.CopyN(io.Discard, r, 1000)
				_ = r.Close()
			}()
		}
		code, errs := endsSoon(t, cmd)
		_ = w.Close()
		if code != 141 || strings.Contains(errs, "bottle: ") {
			t.Errorf("with standard error %v: exit %d: %s", both, code, errs)
		}
	}
}

// TestSlowReader: a reader that pauses slows only the agent; it loses nothing.
func TestSlowReader(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	const size = 8 << 20 // more than all pipes between agent and reader hold
	cmd := u.command("run", "sh", "--proxy", "builtin", "--yes", "--", "-c", fmt.Sprintf("echo ready; head -c %d /dev/zero", size))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // longer than any wait for the rest of an output
	n, err := io.Copy(io.Discard, out)
	if werr := cmd.Wait(); n != size || err != nil || werr != nil {
		t.Errorf("%d bytes of %d, %v, %v", n, size, err, werr)
	}
}
