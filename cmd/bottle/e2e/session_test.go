package e2e

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

func TestExitCodes(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.run("sh", "-c", "exit 7").want(t, 7, "")
	l := u.start("claude-bottle-codes")
	for _, c := range []struct {
		code    int
		command []string
	}{
		{0, []string{"true"}},
		{1, []string{"false"}},
		{143, []string{"sh", "-c", "kill -TERM $$"}},
		{137, []string{"sh", "-c", "kill -KILL $$"}},
		{127, []string{"no-such-command"}},
		{127, []string{"/no/such/command"}},
		{126, []string{"/etc/passwd"}},
		{126, []string{"/tmp"}},
	} {
		if r := u.exec(l.name, c.command...); r.code != c.code {
			t.Errorf("%v: exit %d; want %d\n%s", c.command, r.code, c.code, r.stderr)
		}
	}
	if r := u.exec("claude-bottle-nobody", "true"); r.code != 125 {
		t.Errorf("a bottle that is not there: exit %d", r.code)
	}
	// Standard output and error arrive complete and separate.
	r := u.exec(l.name, "sh", "-c", "echo out; echo err >&2")
	if r.stdout != "out\n" || r.stderr != "err\n" {
		t.Errorf("standard output %q, standard error %q", r.stdout, r.stderr)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d", code)
	}
}

func TestStandardInput(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.says("through run\n").run("sh", "-c", "cat").want(t, 0, "through run\n")
	l := u.start("claude-bottle-stdin")
	u.says("x\n").exec(l.name, "cat").want(t, 0, "x\n")
	u.says("").exec(l.name, "cat").want(t, 0, "")
	big := make([]byte, 5<<20)
	_, _ = rand.Read(big)
	r := u.says(string(big)).exec(l.name, "cat")
	if r.code != 0 || !bytes.Equal([]byte(r.stdout), big) {
		t.Errorf("5 MiB through cat: exit %d, %d bytes, equal: %v", r.code, len(r.stdout), r.stdout == string(big))
	}
	// Unread input does not keep a session alive.
	u.says(string(big)).exec(l.name, "true").want(t, 0, "")
}

// TestBinaryInput passes 100 MB of binary input through a session in the foreground, and
// back.
func TestBinaryInput(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	big := make([]byte, 100<<20)
	_, _ = rand.Read(big)
	for _, rt := range []string{"runsc", "runc"} {
		r := u.says(string(big)).bottle("run", "sh", "--proxy", "builtin", "--yes", "--runtime", rt, "--", "-c", "tee /dev/stderr; exit 6")
		if r.code != 6 || r.stdout != string(big) {
			t.Errorf("%s: exit %d, %d bytes, equal: %v", rt, r.code, len(r.stdout), r.stdout == string(big))
		}
		if !strings.Contains(r.stderr, string(big)) {
			t.Errorf("%s: standard error of %d bytes has not all of them", rt, len(r.stderr))
		}
	}
}

func TestVariables(t *testing.T) {
	leakcheck.Check(t)
	const value = "two\nlines, \"quotes\", 'more', a=b, grün €"
	u := newUser(t).with("FORWARDED="+value, "CLAUDE_BOTTLE_OAUTH_TOKEN=tok")
	r := u.bottle("run", "sh", "--proxy", "builtin", "--yes", "-e", "FORWARDED", "-e", "GIVEN=a b", "--",
		"-c", `printf '%s|%s|%s|%s' "$FORWARDED" "$GIVEN" "$LOG_LEVEL" "$CLAUDE_CODE_OAUTH_TOKEN"`)
	r.want(t, 0, value+"|a b|debug|tok")
	if strings.Contains(r.stderr, "quotes") || strings.Contains(r.stderr, "a b") {
		t.Errorf("the plan shows a value:\n%s", r.stderr)
	}
	// No other variable of the caller or of bottle is set.
	r = u.with("NOT_NAMED=never").bottle("run", "sh", "--proxy", "builtin", "--yes", "-e", "FORWARDED", "--", "-c", "env -0 | cut -z -d= -f1 | sort -z | tr '\\0' ' '")
	r.want(t, 0, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL CLAUDE_CODE_OAUTH_TOKEN "+
		"DISABLE_AUTOUPDATER FORWARDED GRADLE_OPTS HOME HTTPS_PROXY HTTP_PROXY LANG LOG_LEVEL MAVEN_OPTS NODE_USE_ENV_PROXY NO_PROXY PATH PWD "+
		"YARN_HTTPS_PROXY YARN_HTTP_PROXY http_proxy https_proxy no_proxy ")
	l := u.start("claude-bottle-vars")
	u.bottle("exec", "-e", "FORWARDED", "-e", "LOG_LEVEL=other", l.name, "sh", "-c", `printf '%s|%s' "$FORWARDED" "$LOG_LEVEL"`).
		want(t, 0, value+"|other")
	u.exec(l.name, "--", "sh", "-c", `printf %s "$FORWARDED"`).want(t, 0, "")
	r = u.exec(l.name, "-e", "FORWARDED", "env")
	if r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, "flag \"-e\" after the bottle name\nhint: put flags before the name: bottle exec -e … "+l.name) {
		t.Errorf("a flag behind the name: exit %d, %q\n%s", r.code, r.stdout, r.stderr)
	}
	if r = u.exec(l.name, "--"); r.code != 125 || !strings.Contains(r.stderr, "expected a bottle name and a command") {
		t.Errorf("no command: exit %d\n%s", r.code, r.stderr)
	}
	u.bottle("exec", "-w", "/tmp", l.name, "pwd").want(t, 0, "/tmp\n")
	for dir, code := range map[string]int{"/no/such/directory": 126, "/etc/passwd": 126, "/root": 126, "relative": 125} {
		if r := u.bottle("exec", "-w", dir, l.name, "pwd"); r.code != code || !strings.Contains(r.stderr, dir) || r.stdout != "" {
			t.Errorf("in %s: exit %d, want %d: %s%s", dir, r.code, code, r.stdout, r.stderr)
		}
	}
}

// TestInterrupt passes a signal to the agent's command.
func TestInterrupt(t *testing.T) {
	leakcheck.Check(t)
	l := newUser(t).startAgent("trap", "claude-bottle-trap")
	l.signal(syscall.SIGINT)
	if code := l.wait(); code != 9 {
		t.Errorf("exit %d; want the trap's 9\n%s", code, l.errs)
	}
}

// TestImpatience sends many interrupts to an agent that ignores them, and
// during the teardown that follows, which they must not interrupt.
func TestImpatience(t *testing.T) {
	leakcheck.Check(t)
	l := newUser(t).startAgent("deaf", "claude-bottle-deaf")
	sent := 0
	for ; sent < 300 && l.cmd.Process.Signal(syscall.SIGINT) == nil; sent++ {
		time.Sleep(10 * time.Millisecond)
		if l.gone() {
			break
		}
	}
	if code := l.wait(); code != 130 || sent < 5 {
		t.Errorf("exit %d after %d interrupts; want 130\n%s", code, sent, l.errs)
	}
}

// TestHangup closes the terminal, or stops the service.
func TestHangup(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM} {
		t.Run(s.String(), func(t *testing.T) {
			leakcheck.Check(t)
			l := newUser(t).start("claude-bottle-hup")
			l.signal(s)
			if code := l.wait(); code != 128+int(s) {
				t.Errorf("exit %d; want %d\n%s", code, 128+int(s), l.errs)
			}
		})
	}
}

// TestOtherRuntime runs an agent without gVisor, and the plan warns about it.
func TestOtherRuntime(t *testing.T) {
	leakcheck.Check(t)
	r := newUser(t).bottle("run", "sh", "--proxy", "builtin", "--runtime", "runc", "--yes", "--", "-c", "dmesg 2>&1 | grep -c gVisor; exit 3")
	r.want(t, 3, "0\n")
	if !strings.Contains(r.stderr, "WARNING") || !strings.Contains(r.stderr, "without gVisor's isolation") {
		t.Errorf("no warning:\n%s", r.stderr)
	}
}

// TestAbort: a command that hangs in a test is ended with the stacks of its goroutines,
// also while it has a session. What it leaves is removed as after any other crash.
func TestAbort(t *testing.T) {
	u := newUser(t)
	l := u.start("claude-bottle-aborted")
	if err := abort(l.cmd.Process); err != nil {
		t.Fatal(err)
	}
	l.wait()
	if !strings.Contains(l.errs.String(), "SIGABRT: abort") || !strings.Contains(l.errs.String(), "main.(*app).attach") {
		t.Errorf("no stacks in\n%s", l.errs)
	}
	u.bottle("cleanup", "--yes").want(t, 0, "")
}

// number returns the number that a command has printed.
func number(t *testing.T, output string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(output))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestExecKilled kills clients of sessions: the process gets SIGHUP, with its children, or
// SIGPIPE if it goes on to write, and nothing of the session stays.
func TestExecKilled(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	for _, runtime := range []string{"runsc", "runc"} {
		name := "claude-bottle-killed-" + runtime
		l := begin(t, u.command("run", "wait", "--proxy", "builtin", "--runtime", runtime, "--yes", "--name", name), name)
		const count = "ls /proc/1/fd | wc -l"
		// What the start of the agent's session has open for a moment is not a part of it.
		files := u.exec(name, "sh", "-c", count).stdout
		for range 4 {
			if again := u.exec(name, "sh", "-c", count).stdout; number(t, again) < number(t, files) {
				files = again
			}
		}
		for script, want := range map[string]string{
			// The child is a program of its own when it is ready: a shell loses a signal between the
			// fork and the reset of its traps.
			`trap 'echo hangup >/tmp/end; exit' HUP; sh -c 'echo $$ >/tmp/child; echo ready; exec sleep 1000' & wait`: "hangup\n",
			`trap '' HUP; echo 0 >/tmp/child; echo ready; yes; echo $? >/tmp/end`:                                     "141\n",
		} {
			killed := begin(t, u.command("exec", "-T", name, "sh", "-c", script), name)
			killed.signal(syscall.SIGKILL)
			killed.wait()
			const look = `cat /tmp/end 2>/dev/null; [ -e "/proc/$(cat /tmp/child)/exe" ] && [ "$(cat /tmp/child)" != 0 ] && echo child; `
			var r result
			for deadline := time.Now().Add(longest); ; {
				if r = u.exec(name, "sh", "-c", look+count); r.stdout == want+files {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s: after the end of the client: %q\n%s; want %q", runtime, r.stdout, r.stderr, want+files)
				}
			}
			u.exec(name, "rm", "/tmp/end", "/tmp/child").want(t, 0, "")
		}
		left, err := filepath.Glob(filepath.Join("/run/bottle", os.Getenv("CONTAINERD_NAMESPACE"), name, "guest", "session-*"))
		if err != nil || len(left) > 0 {
			t.Errorf("left in the guest directory: %q (%v)", left, err)
		}
		if code := l.end(); code != 0 {
			t.Errorf("%s: exit %d\n%s", runtime, code, l.errs)
		}
	}
}
