package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestExecUser runs commands as other users. None has more privileges than the agent,
// and all have the bottle's variables, although their file belongs to the agent's user.
func TestExecUser(t *testing.T) {
	leakcheck.Check(t)
	for _, runtime := range []string{"runsc", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			u := newUser(t).with("FORWARDED=a secret")
			l := begin(t, u.command("run", "wait", "--proxy", "builtin", "--yes", "--runtime", runtime, "-e", "FORWARDED", "--name", "claude-bottle-users"), "claude-bottle-users")
			const script = `printf '%s|%s|%s|%s' "$(id -u)" "$FORWARDED" "$HOME" "$(grep CapEff /proc/self/status | cut -f2)"`
			const none = "0000000000000000"
			for _, c := range []struct{ user, want string }{
				{"root", "0|a secret|/root|" + none},
				{"0:0", "0|a secret|/root|" + none},
				{"nobody", "65534|a secret|/nonexistent|" + none},
				{"1234", "1234|a secret|/|" + none},
			} {
				u.bottle("exec", "-u", c.user, l.name, "sh", "-c", script).want(t, 0, c.want)
			}
			u.bottle("exec", "--user", "root", "-e", "FORWARDED=mine", l.name, "sh", "-c", `printf %s "$FORWARDED"`).want(t, 0, "mine")
			r := u.bottle("exec", "-u", "nosuchuser", l.name, "true")
			if r.code != 125 || !strings.Contains(r.stderr, `bottle: user "nosuchuser": user not found in the image`) {
				t.Errorf("an unknown user: exit %d\n%s", r.code, r.stderr)
			}
			l.end()
		})
	}
}

// TestShell opens a login shell with its flags.
func TestShell(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-shell")
	r := u.says("pwd; echo $GIVEN; shopt -q login_shell && echo login; exit 3\n").bottle("shell", "shell", "-w", "/tmp", "-e", "GIVEN=x")
	r.want(t, 3, "/tmp\nx\nlogin\n")
	x := u.onTerminal(80, 24, "shell", "shell")
	x.types("echo $((40+2)) $0; exit 4\r")
	x.until("42 bash\r\n")
	if code := x.wait(); code != 4 {
		t.Errorf("exit %d", code)
	}
	l.end()
}

// TestStop ends agents and keeps their bottles, which list -a and inspect show.
func TestStop(t *testing.T) {
	leakcheck.Check(t)
	for _, runtime := range []string{"runsc", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			u := newUser(t)
			const name = "claude-bottle-stops"
			start := func(script string) *live {
				return begin(t, u.command("run", "sh", "--proxy", "builtin", "--yes", "--runtime", runtime, "--name", name, "--", "-c", script), name)
			}
			// SIGTERM reaches the agent, which may end in its own way.
			l := start(`trap 'echo ended; exit 9' TERM; echo ready; sleep 1000 >/dev/null & wait`)
			u.bottle("stop", "stops").want(t, 0, name+"\n")
			if line, _ := l.out.ReadString('\n'); line != "ended\n" {
				t.Errorf("the agent said %q", line)
			}
			if code := l.wait(); code != 9 && code != 137 {
				t.Errorf("exit %d\n%s", code, l.errs)
			}
			// An agent that ignores it is killed.
			l = start(`trap '' TERM; echo ready; while :; do sleep 1; done`)
			r := u.bottle("stop", "-t", "1", "stops")
			r.want(t, 0, name+"\n")
			if !strings.Contains(r.stderr, name+" did not end within 1 seconds and was killed.\n") {
				t.Errorf("stop: %s", r.stderr)
			}
			l.wait()
		})
	}
}

// TestStopped stops a bottle without a session: it stays until rm.
func TestStopped(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	const name = "claude-bottle-orphan"
	l := u.start(name)
	if err := l.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	l.wait()
	u.bottle("list", "-q", "-f", "name=orphan").want(t, 0, name+"\n")
	var details []struct {
		Name, Agent, Status string
		PID                 int
		Container           struct {
			UID    int
			Limits struct{ Memory int64 }
		}
		Egress struct{ Allow []string }
	}
	if err := json.Unmarshal([]byte(u.bottle("inspect", "orphan").stdout), &details); err != nil {
		t.Fatal(err)
	}
	if len(details) != 1 || details[0].Name != name || details[0].Agent != "wait" || details[0].Status != "running" || details[0].PID == 0 ||
		details[0].Container.UID == 0 || details[0].Container.Limits.Memory != 4<<30 || len(details[0].Egress.Allow) != 3 {
		t.Errorf("inspect: %+v", details)
	}
	u.bottle("stop", "-t", "0", "orphan").want(t, 0, name+"\n")
	u.bottle("stop", "orphan").want(t, 0, name+"\n")
	u.bottle("list", "-q").want(t, 0, "")
	u.bottle("list", "-a", "--format", "{{.Name}} {{.Status}}").want(t, 0, name+" stopped\n")
	u.bottle("list", "--filter", "status=stopped", "-q").want(t, 0, name+"\n")
	u.bottle("inspect", "-f", "{{.Status}} {{.PID}}", "orphan").want(t, 0, "stopped 0\n")
	if r := u.exec("orphan", "true"); r.code != 125 || !strings.Contains(r.stderr, "not running") {
		t.Errorf("exec: exit %d\n%s", r.code, r.stderr)
	}
	u.bottle("rm", "orphan").want(t, 0, name+"\n")
	for _, command := range []string{"stop", "inspect"} {
		if r := u.bottle(command, "orphan"); r.code != 125 || !strings.Contains(r.stderr, "no such bottle: orphan\nhint: ") {
			t.Errorf("%s of a removed bottle: exit %d\n%s", command, r.code, r.stderr)
		}
	}
}

func TestVersion(t *testing.T) {
	u := newUser(t)
	var v struct{ Version, Go, Containerd, Runsc, Runc, CNI, Kernel string }
	if err := json.Unmarshal([]byte(u.bottle("version", "--json").stdout), &v); err != nil || v.Version == "" || v.Containerd == "" {
		t.Errorf("%+v, %v", v, err)
	}
	if !strings.HasPrefix(v.Runsc, "runsc version ") || !strings.HasPrefix(v.Runc, "runc version ") || !strings.HasPrefix(v.CNI, "CNI bridge plugin") || v.Kernel == "" {
		t.Errorf("%+v", v)
	}
	if r := u.with("PATH=/nowhere", "CNI_PATH=/nowhere").bottle("version"); r.code != 0 || !strings.Contains(r.stdout, "runsc        missing\n") {
		t.Errorf("without programs: exit %d, %s%s", r.code, r.stdout, r.stderr)
	}
	r := u.bottle("--address", "/nowhere", "version")
	if r.code != 0 || !strings.Contains(r.stdout, "containerd   unknown (cannot connect to containerd at /nowhere: ") {
		t.Errorf("without containerd: exit %d, %s%s", r.code, r.stdout, r.stderr)
	}
}
