package e2e

import (
	"bufio"
	"io"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// mainBegun is in the trace of the program's initialization if that was completed.
const mainBegun = "\ninit main @"

// trace matches lines of it.
var trace = regexp.MustCompile(`(?m)^init .*\n`)

// traced has bottle trace its initialization to standard error, which shows how far that came.
func (u user) traced() user { return u.with("GODEBUG=inittrace=1") }

// TestFastExec: a plain command ends the program before the rest of it is initialized, with
// the same results as any other, and what needs more gets it.
func TestFastExec(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-fast")
	for name, c := range map[string]struct {
		args []string
		fast bool
		code int
		out  string
	}{
		"output":           {[]string{"exec", l.name, "sh", "-c", "cat; exit 3"}, true, 3, "in"},
		"directory":        {[]string{"exec", "-T", "-w", "/tmp", l.name, "--", "pwd"}, true, 0, "/tmp\n"},
		"not found":        {[]string{"exec", l.name, "no-such-command"}, true, 127, ""},
		"variable":         {[]string{"exec", "-e", "A=b", l.name, "sh", "-c", "echo $A"}, false, 0, "b\n"},
		"terminal":         {[]string{"exec", "-t", l.name, "echo", "x"}, false, 0, "x\r\n"},
		"part of the name": {[]string{"exec", "fast", "echo", "x"}, true, 0, "x\n"},
		"no such bottle":   {[]string{"exec", "claude-bottle-nobody", "true"}, false, 125, ""},
		"relative":         {[]string{"exec", "-w", "tmp", l.name, "true"}, false, 125, ""},
		"killed":           {[]string{"exec", l.name, "sh", "-c", "kill -9 $$"}, false, 137, ""},
		"long":             {[]string{"exec", l.name, "sh", "-c", "echo begin; sleep 1; cat; exit 3"}, false, 3, "begin\nin"},
	} {
		input := ""
		if strings.Contains(strings.Join(c.args, " "), "cat") {
			input = "in"
		}
		r := u.says(input).traced().bottle(c.args...)
		if r.code != c.code || r.stdout != c.out {
			t.Errorf("%s: exit %d and %q; want %d and %q; standard error: %q", name, r.code, r.stdout, c.code, c.out, trace.ReplaceAllString(r.stderr, ""))
		}
		// On a busy host a short command may take long.
		if fast := !strings.Contains(r.stderr, mainBegun); fast && !c.fast {
			t.Errorf("%s: the program was not initialized", name)
		} else if c.fast && !fast {
			t.Logf("%s: the command took long", name)
		}
	}
	fast := 0
	for range 5 {
		if r := u.says("").traced().exec(l.name, "true"); !strings.Contains(r.stderr, mainBegun) {
			fast++
		}
	}
	if fast == 0 {
		t.Error("the program was initialized for every short command")
	}
	// Signals go to the command, before the program is initialized and after it.
	for _, wait := range []bool{false, true} {
		cmd := u.traced().command("exec", l.name, "sh", "-c", `trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done`)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		steps := bufio.NewReader(stderr)
		lines := bufio.NewReader(out)
		if line, err := lines.ReadString('\n'); line != "ready\n" {
			t.Errorf("%q, %v", line, err)
		}
		for wait {
			line, err := steps.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			wait = !strings.HasPrefix(line, strings.TrimSpace(mainBegun))
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		rest, _ := io.ReadAll(lines)
		_, _ = io.Copy(io.Discard, steps)
		if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 5 || string(rest) != "got\n" {
			t.Errorf("after a signal: %v, %q", err, rest)
		}
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// TestFastExecLimit: a limit that a session has reached is reported.
func TestFastExecLimit(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", `version: 1
bottles:
  dev: {image: "bottle-demo:latest", limits: {disk: 64MiB}}
agents:
  wait: {bottle: dev, command: [sh, -c, "echo ready; cat >/dev/null"]}
`)
	l := u.start("claude-bottle-full")
	r := u.exec(l.name, "sh", "-c", "dd if=/dev/zero of=/tmp/x bs=1M count=200; exit 7")
	if !strings.Contains(r.stderr, "The bottle's limit of 64 MiB of disk was reached.\n") {
		t.Errorf("exit %d, %q", r.code, r.stderr)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// TestNoCollection: a short command ends before garbage is collected.
func TestNoCollection(t *testing.T) {
	u := newUser(t)
	traced := func(env ...string) string { return u.with(append(env, "GODEBUG=gctrace=1")...).bottle("list").stderr }
	if r := traced(); strings.Contains(r, "gc 1 @") {
		t.Error(r)
	}
	if r := traced("GOGC=50"); !strings.Contains(r, "gc 1 @") { // the control
		t.Errorf("nothing is traced: %q", r)
	}
}
