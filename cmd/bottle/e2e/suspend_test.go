package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/bytesearch"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// counts is an agent with state everywhere: a counter and a secret in its memory, files in
// its root file system, in memory and in its copy of the directory, and a screen.
const counts = `stty -echo; token=$TOKEN; printf '\033[2;3Hdrawn once'; echo root >/tmp/root; echo shm >/dev/shm/file; echo work >work; n=0
while sleep 0.05; do n=$((n+1)); echo "$$ $n $(stty size)" >/tmp/next; mv /tmp/next /tmp/count; done`

// reads prints that state.
const reads = `until test -e /tmp/count; do sleep 0.05; done; cat /tmp/root /dev/shm/file work | tr '\n' ' '; cat /tmp/count`

// counted returns the counter, and fails if another part of the state is not as the agent
// has left it.
func (u user) counted(name string, pid *int) (n int) {
	u.t.Helper()
	r := u.bottle("exec", name, "sh", "-c", reads)
	var id, rows, columns int
	_, err := fmt.Sscanf(r.stdout, "root shm work %d %d %d %d\n", &id, &n, &rows, &columns)
	if err != nil || *pid != 0 && id != *pid {
		u.t.Fatalf("the state of %s is %q, %v\n%s", name, r.stdout, err, r.stderr)
	}
	*pid = id
	return n
}

// advances waits until a counter is higher than n, and returns it.
func (u user) advances(name string, pid *int, n int) (now int) {
	u.t.Helper()
	within(u.t, func() bool { now = u.counted(name, pid); return now > n })
	return now
}

// sandboxes returns the number of processes of gVisor on the host that belong to a bottle.
func sandboxes(t *testing.T, name string) (n int) {
	t.Helper()
	for _, argv := range bytesearch.Arguments(t) {
		if strings.Contains(argv, "runsc-") && strings.Contains(argv, name) {
			n++
		}
	}
	return n
}

// TestSuspendResume suspends a bottle whose agent has state everywhere and resumes it twice: the
// state continues, attached clients leave without removing the bottle, and the policy is in
// force. While it is suspended nothing of it runs, its secret is in the memory image and in
// the directory of the agent's variables, both on tmpfs, and nowhere else.
func TestSuspendResume(t *testing.T) {
	leakcheck.Check(t)
	s := bytesearch.New(t)
	token := "s3-of-a-suspended-agent-" + fmt.Sprint(time.Now().UnixNano())
	s.Add("token", token)
	u := newUser(t)
	u.write("bottle.yaml", strings.Replace(manifest, "    egress:", "    limits: {workspace: 64MiB}\n    egress:", 1))
	name := u.with("TOKEN="+token).detached("asleep", "--cwd", "-e", "TOKEN", "--", "-c", counts)
	pid := 0
	before := u.advances(name, &pid, 0)
	x := u.onTerminal(90, 20, "attach", name)
	x.until("drawn once")
	r := u.bottle("suspend", name)
	r.want(t, 0, name+"\n")
	if seen := x.until("was suspended."); !strings.Contains(seen, name) || x.wait() != 0 {
		t.Errorf("the attached client: %q", seen)
	}
	if n := sandboxes(t, name); n != 0 || !strings.Contains(r.stderr, "MiB of memory. bottle resume "+name) {
		t.Errorf("%d processes of the sandbox run\n%s", n, r.stderr)
	}
	for _, all := range [][]string{{}, {"-a"}} {
		u.bottle(append([]string{"list", "--format", "{{.Status}}"}, all...)...).want(t, 0, "suspended\n")
	}
	image := 0
	found := s.Processes()
	for _, root := range []string{"/run/bottle", "/var/lib/bottle", filepath.Join(os.Getenv("LAB_DISK"), "containerd")} {
		found = append(found, s.Files(root)...)
	}
	for _, f := range found {
		switch {
		case strings.Contains(f.Place, name+"/memory/") && bytesearch.IsTmpfs(f.Place):
			image++
		case strings.HasSuffix(f.Place, name+"/guest/env"):
		default:
			t.Errorf("%s: %s", f.Place, f.Form)
		}
	}
	if image == 0 {
		t.Error("the secret is not found in the memory image, so that the search shows nothing")
	}
	images, _ := filepath.Glob("/run/bottle/*/" + name + "/memory") // the pattern is valid
	if fi, err := os.Stat(images[0]); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory of the image: %v, %v", fi, err)
	}
	for _, args := range [][]string{{"suspend", name}, {"exec", name, "true"}, {"attach", name}, {"wait", name}, {"diff", name}, {"start", name}, {"rm", name}} {
		r := u.bottle(args...)
		if r.code != 125 || !strings.Contains(r.stderr, "suspended\nhint: bottle resume "+name) {
			t.Errorf("%s: exit %d\n%s", args[0], r.code, r.stderr)
		}
	}
	for range 2 {
		u.bottle("resume", name).want(t, 0, name+"\n")
		u.bottle("list", "--format", "{{.Status}}").want(t, 0, "running\n")
		before = u.advances(name, &pid, before)
		const curl = `curl -sS -o /dev/null -w '%{http_code} ' -p http://allowed.test/; curl -sS -o /dev/null -w '%{http_code}' http://refused.test/`
		u.exec(name, "sh", "-c", curl).want(t, 0, "200 403")
		x := u.onTerminal(90, 20, "attach", name)
		x.until("drawn once")
		x.types("\x10\x11")
		x.until("Detached")
		x.wait()
		if list, _ := filepath.Glob("/run/bottle/*/" + name + "/memory"); len(list) > 0 {
			t.Errorf("%s exists while the bottle runs", list)
		}
		u.bottle("suspend", name).want(t, 0, name+"\n")
	}
	u.bottle("stop", name).want(t, 0, name+"\n")
	u.bottle("list", "-a", "--format", "{{.Status}}").want(t, 0, "stopped, killed\n")
	u.bottle("rm", "--discard", name).want(t, 0, name+"\n")
}

// TestSuspendRefused: a bottle whose session ends with the command that has started it, and
// one under runc, cannot be suspended, and run on.
func TestSuspendRefused(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-attached")
	name := u.detached("shared", "--runtime", "runc", "-T", "--", "-c", "while sleep 1; do :; done")
	for bottle, want := range map[string]string{
		l.name: "its session ends with the command that has started it\nhint: run the agent with -d or --keep\n",
		name:   "only bottles under runsc can be suspended and forked\nhint: run the agent with --runtime runsc\n",
	} {
		r := u.bottle("suspend", bottle)
		if want = "bottle: cannot suspend " + bottle + ": " + want; r.code != 125 || r.stderr != want {
			t.Errorf("exit %d\n%s\nwant %s", r.code, r.stderr, want)
		}
		u.exec(bottle, "true").want(t, 0, "")
	}
	r := u.bottle("resume", name)
	if r.code != 125 {
		t.Errorf("resume: exit %d\n%s", r.code, r.stderr)
	}
	u.bottle("rm", "-f", name).want(t, 0, name+"\n")
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}
