package e2e

import (
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// terminal is a pseudo-terminal with bottle on its far side.
type terminal struct {
	t      *testing.T
	near   console.Console
	out    chan byte
	far    *os.File
	before unix.Termios
	cmd    *exec.Cmd
}

func (u user) onTerminal(width, height uint16, args ...string) *terminal {
	u.t.Helper()
	near, farPath, err := console.NewPty()
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { _ = near.Close() })
	if err := near.Resize(console.WinSize{Width: width, Height: height}); err != nil {
		u.t.Fatal(err)
	}
	far, err := os.OpenFile(farPath, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { _ = far.Close() })
	x := &terminal{t: u.t, near: near, far: far, out: make(chan byte, 1<<16), before: termios(u.t, far), cmd: u.command(args...)}
	x.cmd.Stdin, x.cmd.Stdout, x.cmd.Stderr = far, far, far
	x.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := x.cmd.Start(); err != nil {
		u.t.Fatal(err)
	}
	go func() {
		defer close(x.out)
		for b := make([]byte, 1); ; {
			if _, err := near.Read(b); err != nil {
				return
			}
			x.out <- b[0]
		}
	}()
	return x
}

func termios(t *testing.T, f *os.File) unix.Termios {
	t.Helper()
	s, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *s
}

func (x *terminal) types(text string) {
	x.t.Helper()
	if _, err := io.WriteString(x.near, text); err != nil {
		x.t.Fatal(err)
	}
}

// until reads up to and with a text.
func (x *terminal) until(text string) string {
	x.t.Helper()
	var seen strings.Builder
	limit := time.After(longest + 10*time.Second) // a command that hangs is aborted before
	for !strings.HasSuffix(seen.String(), text) {
		select {
		case b, ok := <-x.out:
			if !ok {
				x.t.Fatalf("waiting for %q: the end; seen:\n%s", text, &seen)
			}
			seen.WriteByte(b)
		case <-limit:
			x.t.Fatalf("waiting for %q; seen:\n%s", text, &seen)
		}
	}
	return seen.String()
}

// wait returns bottle's exit code, and fails unless the terminal is as it was.
func (x *terminal) wait() int {
	x.t.Helper()
	_ = x.cmd.Wait() // the exit code is what is asked for
	if now := termios(x.t, x.far); now != x.before {
		x.t.Errorf("the terminal's mode is not as before:\n%+v\n%+v", x.before, now)
	}
	return x.cmd.ProcessState.ExitCode()
}

func TestTerminal(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TERM=xterm-256color")
	x := u.onTerminal(91, 37, "run", "sh", "--proxy", "builtin", "--", "-c",
		`trap 'stty size; echo again' WINCH; test -t 0 && echo on a terminal; stty size; echo "$TERM"; echo there; while ! read -r line; do :; done; echo "read $line"; exit 5`)
	x.until("Start? [y/N] ")
	x.types("y\n")
	first := x.until("there\r\n")
	for _, want := range []string{"on a terminal\r\n", "37 91\r\n", "xterm-256color\r\n"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in:\n%s", want, first)
		}
	}
	if err := x.near.Resize(console.WinSize{Width: 123, Height: 45}); err != nil {
		t.Fatal(err)
	}
	if again := x.until("again\r\n"); !strings.Contains(again, "45 123\r\n") {
		t.Errorf("after a resize:\n%s", again)
	}
	x.types("hello\r")
	x.until("read hello\r\n")
	if code := x.wait(); code != 5 {
		t.Errorf("exit %d", code)
	}
}

// TestTerminalVariables checks the variables that describe the caller's terminal.
func TestTerminalVariables(t *testing.T) {
	leakcheck.Check(t)
	for term, want := range map[string]string{
		"vt100":       "vt100",          // in the image's terminfo
		"bottle-test": "xterm-256color", // in none
	} {
		x := newUser(t).with("TERM="+term, "COLORTERM=truecolor").onTerminal(80, 24, "run", "sh", "--proxy", "builtin", "--yes", "--", "-c", `echo "TERM is $TERM, COLORTERM is $COLORTERM."`)
		x.until("TERM is " + want + ", COLORTERM is truecolor.\r\n")
		if code := x.wait(); code != 0 {
			t.Errorf("%s: exit %d", term, code)
		}
	}
}

// TestTerminalInterrupt presses Ctrl-C, which reaches the agent's command and the
// child that it waits for. The child itself reports that it runs: gVisor's fork does
// not restart after a signal to the process group, as Linux's does (its
// task_clone.go), so the signal may reach a forking parent and not the child, and a
// shell keeps waiting for that child. The innermost sleep is short for this reason.
func TestTerminalInterrupt(t *testing.T) {
	leakcheck.Check(t)
	x := newUser(t).onTerminal(80, 24, "run", "sh", "--proxy", "builtin", "--yes", "--", "-c",
		`sh -c 'trap "echo child; exit 7" INT; echo there; for i in $(seq 600); do sleep 0.1; done'; echo "code $?"; exit 1`)
	x.until("there\r\n")
	x.types("\x03")
	x.until("child\r\n")
	if code := x.wait(); code != 130 {
		t.Errorf("exit %d; want 130", code)
	}
}

// TestTerminalKilled ends bottle from outside while the terminal is raw.
func TestTerminalKilled(t *testing.T) {
	leakcheck.Check(t)
	x := newUser(t).onTerminal(80, 24, "run", "sh", "--proxy", "builtin", "--yes", "--", "-c", "echo there; exec sleep 1000")
	x.until("there\r\n")
	if err := x.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := x.wait(); code != 143 {
		t.Errorf("exit %d; want 143", code)
	}
}

// TestScreenRestored ends sessions that have set every screen mode, in every way but the
// agent's exit and the detach keys, which TestDetach has: the modes are reset and the
// terminal's settings restored.
func TestScreenRestored(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TERM=xterm-256color")
	const name = "claude-bottle-full"
	ends := map[string]func(x *terminal){
		"SIGTERM": func(x *terminal) {
			if err := x.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		},
		"sandbox killed": func(*terminal) {
			pid, err := strconv.Atoi(strings.TrimSpace(u.bottle("inspect", name, "--format", "{{.PID}}").stdout))
			if err != nil || pid <= 1 {
				t.Fatalf("process %d, %v", pid, err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		"memory limit": func(x *terminal) { x.types("hog\r") },
		"stop":         func(*terminal) { u.bottle("stop", "-t", "1", name).want(t, 0, name+"\n") },
		"removed":      func(*terminal) { u.bottle("rm", "-f", name).want(t, 0, name+"\n") },
	}
	u.write("bottle.yaml", strings.Replace(manifest, "  dev:\n", "  dev:\n    limits: {memory: 128MiB}\n", 1))
	for how, end := range ends {
		for _, flags := range [][]string{nil, {"--keep"}} {
			t.Run(how+strings.Join(flags, ""), func(t *testing.T) {
				x := u.onTerminal(100, 30, append(append([]string{"run", "sh", "--proxy", "builtin", "--yes", "--name", name}, flags...), "--", "-c", strings.Replace(fullScreen, "do :; done", "do [ \"$line\" != hog ] || exec tail /dev/zero; done", 1))...)
				x.until("\x1b[5;1Hready") // the plan shows the command, too
				end(x)
				x.until(restored)
				if code := x.wait(); code == 0 {
					t.Error("exit 0")
				}
				u.bottle("cleanup", "--yes")
			})
		}
	}
}

func TestQuestion(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	for _, answer := range []string{"n\n", "\n", "", "yess\n"} {
		r := u.says(answer).bottle("run", "sh", "--proxy", "builtin", "--", "-c", "echo ran")
		if r.code != 1 || r.stdout != "" || !strings.HasSuffix(r.stderr, "Nothing was done.\n") {
			t.Errorf("answer %q: exit %d, %q\n%s", answer, r.code, r.stdout, r.stderr)
		}
	}
	// Input after the answer belongs to the agent.
	u.says("y\nfor the agent\n").bottle("run", "sh", "--proxy", "builtin", "--", "-c", "cat").want(t, 0, "for the agent\n")
	r := u.bottle("run", "sh", "--proxy", "builtin", "--no-input")
	if r.code != 125 || !strings.Contains(r.stderr, "--yes") {
		t.Errorf("--no-input: exit %d\n%s", r.code, r.stderr)
	}
	x := u.onTerminal(80, 24, "run", "sh", "--proxy", "builtin")
	x.until("Start? [y/N] ")
	x.types("\x03")
	if code := x.wait(); code != 130 {
		t.Errorf("Ctrl-C at the question: exit %d", code)
	}
	x = u.onTerminal(80, 24, "run", "sh", "--proxy", "builtin")
	x.until("Start? [y/N] ")
	if err := x.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := x.wait(); code != 143 {
		t.Errorf("SIGTERM at the question: exit %d", code)
	}
}

// TestAskedSecret reads a value without showing it.
func TestAskedSecret(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("asks.yaml", `
version: 1
bottles:
  dev: {env: {API_KEY: {prompt: "API key"}}}
agents:
  sh: {bottle: dev, command: [sh]}
`)
	x := u.onTerminal(80, 24, "--manifest", "asks.yaml", "run", "sh", "--proxy", "builtin", "--yes", "--", "-c", `echo "key has ${#API_KEY}"`)
	x.until(`API_KEY (the manifest asks: "API key"): `)
	x.types("s3cr3t-value\r")
	rest := x.until("key has 12\r\n")
	if strings.Contains(rest, "s3cr3t") {
		t.Errorf("the value was shown:\n%s", rest)
	}
	if code := x.wait(); code != 0 {
		t.Errorf("exit %d", code)
	}
	// The echo is restored after an interrupt.
	x = u.onTerminal(80, 24, "--manifest", "asks.yaml", "run", "sh", "--proxy", "builtin", "--yes")
	x.until(`API_KEY (the manifest asks: "API key"): `)
	x.types("s3cr3t\x03")
	if code := x.wait(); code != 130 {
		t.Errorf("Ctrl-C at the question: exit %d", code)
	}
	r := u.bottle("--manifest", "asks.yaml", "run", "sh", "--proxy", "builtin", "--yes")
	if r.code != 125 || !strings.Contains(r.stderr, `cannot ask for API_KEY (the manifest asks: "API key"): no terminal`) {
		t.Errorf("without a terminal: exit %d\n%s", r.code, r.stderr)
	}
	r = u.bottle("--manifest", "asks.yaml", "run", "sh", "--proxy", "builtin", "--yes", "--no-input")
	if r.code != 125 || !strings.Contains(r.stderr, "API_KEY") {
		t.Errorf("--no-input: exit %d\n%s", r.code, r.stderr)
	}
}

// TestRefusalInTitle: a refusal while the agent draws is shown in the title, with the
// command that allows it, and again after the session. The agent's drawing is not
// changed, and the title is restored at the end.
func TestRefusalInTitle(t *testing.T) {
	leakcheck.Check(t)
	const (
		notice = "\x1b[22;2t\x1b]2;refused: refused.test:8443 - bottle allow claude-bottle-side refused.test:8443\a"
		back   = "\x1b[23;2t"
		// Colours, characters of several bytes, and a sequence that is cut by a pause.
		drawing = "\x1b[31mé€\x1b[0m"
	)
	script := `draw() { for i in $(seq 200); do printf '\033[3'; sleep 0.01; printf '1m\303'; printf '\251\342\202'; printf '\254\033[0m'; done; }
echo there; read -r go
curl -sm 10 https://refused.test:8443/ & draw; wait; echo drawn; read -r end`
	for allow, command := range map[string][]string{
		"allow sh refused.test:8443 --save":          {"run", "sh", "--proxy", "builtin", "--yes", "--name", "claude-bottle-side", "--", "-c", script},
		"allow claude-bottle-side refused.test:8443": {"exec", "claude-bottle-side", "sh", "-c", script},
	} {
		t.Run(command[0], func(t *testing.T) {
			u := newUser(t).with("TERM=xterm-256color")
			if command[0] == "exec" {
				l := u.start("claude-bottle-side")
				defer l.end()
			}
			x := u.onTerminal(200, 24, command...)
			x.until("there\r\n")
			x.types("\r")
			drawn := x.until("drawn\r\n")
			if i := strings.Index(drawn, "\x1b"); i > 0 {
				drawn = drawn[i:] // after the echo of the key
			}
			if n := strings.Count(drawn, notice); n != 1 {
				t.Errorf("%d notices in\n%q", n, drawn)
			}
			if got, want := strings.Replace(drawn, notice, "", 1), strings.Repeat(drawing, 200)+"drawn\r\n"; got != want {
				t.Errorf("the agent's drawing came as\n%q", got)
			}
			x.types("\r")
			rest := x.until("  bottle " + allow + "\r\n")
			if strings.Count(rest, back) != 1 || strings.Index(rest, back) > strings.Index(rest, "The egress proxy refused: refused.test:8443.") {
				t.Errorf("the title is not restored before the output after the session:\n%q", rest)
			}
			if code := x.wait(); code != 0 {
				t.Errorf("exit %d", code)
			}
		})
	}
	t.Run("no terminal", func(t *testing.T) {
		r := newUser(t).run("sh", "-c", "curl -sm 10 https://refused.test/; echo done")
		r.want(t, 0, "done\n")
		if strings.Contains(r.stderr, "\x1b") || !strings.Contains(r.stderr, "  bottle allow sh refused.test --save\n") {
			t.Errorf("standard error:\n%q", r.stderr)
		}
	})
	t.Run("a terminal without titles", func(t *testing.T) {
		x := newUser(t).with("TERM=dumb").onTerminal(200, 24, "run", "sh", "--proxy", "builtin", "--yes", "--", "-c", "curl -sm 10 https://refused.test/; echo done")
		seen := x.until("bottle allow sh refused.test --save\r\n")
		if strings.Contains(seen, "\x1b") {
			t.Errorf("a terminal that has no title got\n%q", seen)
		}
		x.wait()
	})
}
