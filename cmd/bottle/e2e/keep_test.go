package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const worker = "claude-bottle-sh"

// work runs an agent with a command on a copy of the user's directory.
func (u user) work(command string, flags ...string) result {
	u.t.Helper()
	return u.bottle(append(append([]string{"run", "sh", "--proxy", "builtin", "--yes", "-q", "--cwd"}, flags...), "--", "-c", command)...)
}

func (u user) listed(args ...string) map[string]bottle.Status {
	u.t.Helper()
	r := u.bottle(append([]string{"list", "--json"}, args...)...)
	var list []bottle.Status
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		u.t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	out := map[string]bottle.Status{}
	for _, s := range list {
		out[s.Name] = s
	}
	return out
}

// TestWorkIsKept: what the agent made with --cwd outlives its bottle, is listed, copied
// out, and removed only when the user says so.
func TestWorkIsKept(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("plan.txt", "start\n")
	r := u.work("pwd; cat plan.txt; echo done >>plan.txt; mkdir out; echo result >out/report")
	r.want(t, 0, "/workspace\nstart\n")
	t.Cleanup(func() { u.bottle("cleanup", "--yes", "--discard").want(t, 0, "") })
	for _, want := range []string{"The work of claude-bottle-sh: 3 files, ", "not fetched.\nIt is kept.\n", "bottle apply sh", "bottle cp sh:/workspace DIRECTORY", "bottle rm --discard sh"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("the end of the session does not show %q:\n%s", want, r.stderr)
		}
	}
	if got, err := os.ReadFile(u.dir + "/plan.txt"); string(got) != "start\n" || err != nil {
		t.Errorf("the user's own file has %q, %v", got, err)
	}
	if s := u.listed("-a")[worker]; s.Status != "kept" || s.Agent != "sh" || s.Work == nil || !s.Work.Unfetched || s.Work.Used == 0 {
		t.Errorf("list -a: %+v, %+v", s, s.Work)
	}
	if list := u.listed(); len(list) != 0 {
		t.Errorf("list shows %v", list)
	}
	if r := u.bottle("list", "-a"); !strings.Contains(r.stdout, "WORK") || !strings.Contains(r.stdout, "not fetched") {
		t.Errorf("list -a:\n%s%s", r.stdout, r.stderr)
	}
	u.bottle("cp", "sh:/workspace/out", u.dir+"/").want(t, 0, "")
	if got, err := os.ReadFile(u.dir + "/out/report"); string(got) != "result\n" || err != nil {
		t.Errorf("the copy has %q, %v", got, err)
	}
	// The name belongs to the work.
	u.work("true", "--discard").want(t, 0, "")
	if r := u.work("true", "--name", worker); r.code != 125 || !strings.Contains(r.stderr, "is taken") {
		t.Errorf("with the name of kept work: exit %d\n%s", r.code, r.stderr)
	}
	for _, args := range [][]string{{"rm", "sh"}, {"rm", "-f", "sh"}} {
		if r := u.bottle(args...); r.code != 125 || !strings.Contains(r.stderr, "has work that was not fetched") || !strings.Contains(r.stderr, "--discard") {
			t.Errorf("%v: exit %d\n%s", args, r.code, r.stderr)
		}
	}
	r = u.bottle("cleanup", "--yes")
	if r.code != 0 || !strings.Contains(r.stderr, "There is nothing to remove.") || !strings.Contains(r.stderr, worker) {
		t.Errorf("cleanup: exit %d\n%s", r.code, r.stderr)
	}
	if s := u.listed("-a")[worker]; s.Status != "kept" {
		t.Errorf("after cleanup: %+v", s)
	}
	u.bottle("rm", "--discard", "sh").want(t, 0, worker+"\n")
	if list := u.listed("-a"); len(list) != 0 {
		t.Errorf("after rm --discard: %v", list)
	}
}

// TestWorkUnchanged: an agent that changed nothing, and work that is not wanted, leave
// nothing.
func TestWorkUnchanged(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	for command, flags := range map[string][]string{"cat bottle.yaml >/dev/null; ls -R": nil, "echo >x": {"--discard"}} {
		if r := u.work(command, flags...); r.code != 0 || strings.Contains(r.stderr, "is kept") {
			t.Errorf("%s: exit %d\n%s", command, r.code, r.stderr)
		}
		if list := u.listed("-a"); len(list) != 0 {
			t.Errorf("%s: left %v", command, list)
		}
	}
}

// TestWorkOfRunningBottle: the work of a bottle that is removed while its agent works is
// not lost.
func TestWorkOfRunningBottle(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := begin(t, u.command("run", "wait", "--proxy", "builtin", "--yes", "--cwd", "--name", "claude-bottle-w"), "claude-bottle-w")
	u.exec("w", "sh", "-c", "echo x >/workspace/new").want(t, 0, "")
	if s := u.listed("-a")["claude-bottle-w"]; s.Status != "running" || s.Work == nil || !s.Work.Unfetched {
		t.Errorf("list -a: %+v, %+v", s, s.Work)
	}
	if r := u.bottle("rm", "-f", "w"); r.code != 125 || !strings.Contains(r.stderr, "not fetched") {
		t.Errorf("rm -f: exit %d\n%s", r.code, r.stderr)
	}
	u.bottle("cleanup", "--yes").want(t, 0, "")
	l.wait()
	if s := u.listed("-a")["claude-bottle-w"]; s.Status != "kept" {
		t.Errorf("after cleanup: %+v", s)
	}
	u.bottle("cleanup", "--yes", "--discard").want(t, 0, "")
	if list := u.listed("-a"); len(list) != 0 {
		t.Errorf("after cleanup --discard: %v", list)
	}
}

// repository makes the user's directory a git repository.
func (u user) repository() {
	u.t.Helper()
	u.write(".gitignore", ".state\n")
	u.write("file", "original\n")
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-q", "-m", "first"}} {
		u.git(args...)
	}
}

// git runs git on the host and returns its output.
func (u user) git(args ...string) string {
	u.t.Helper()
	cmd := exec.CommandContext(u.t.Context(), "git", append([]string{"-c", "user.name=Ada", "-c", "user.email=ada@example.test"}, args...)...)
	cmd.Dir = u.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		u.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// commitInside commits one file in the bottle and leaves another one uncommitted.
const commitInside = "echo edited >file && git -c user.name=agent -c user.email=a@b commit -qam agent && echo new >new"

// TestEndOfWork: at the end of a session, bottle reports the agent's commits and files, and
// fetches, applies, keeps or discards them as the user wants.
func TestEndOfWork(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("TERM=dumb")
	u.repository()
	t.Cleanup(func() { u.bottle("cleanup", "--yes", "--discard").want(t, 0, "") })

	// Without a terminal it is kept.
	r := u.work(commitInside)
	for _, want := range []string{"The work of claude-bottle-sh: 1 commit, 2 files, ", "not fetched.\nIt is kept.\n", "bottle fetch sh"} {
		if r.code != 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("exit %d, no %q:\n%s", r.code, want, r.stderr)
		}
	}
	if w := u.listed("-a")[worker].Work; w == nil || w.Summary == nil || w.Summary.Commits != 1 || w.Summary.Files != 2 {
		t.Errorf("list -a: %+v", w)
	}
	if r := u.bottle("list", "-a"); !strings.Contains(r.stdout, "1 commit, 2 files, ") {
		t.Errorf("list -a:\n%s%s", r.stdout, r.stderr)
	}
	u.bottle("rm", "--discard", "sh").want(t, 0, worker+"\n")

	r = u.work(commitInside, "--fetch")
	if r.code != 0 || !strings.Contains(r.stderr, "bottle/sh has 1 commit of the agent's, and its uncommitted work") || strings.Contains(r.stderr, "--discard") {
		t.Errorf("--fetch: exit %d\n%s", r.code, r.stderr)
	}
	if got := u.git("log", "--format=%s", "bottle/sh"); got != "Uncommitted work\nagent\nfirst" {
		t.Errorf("--fetch: the branch has %q", got)
	}
	u.bottle("rm", "sh").want(t, 0, worker+"\n") // everything was fetched
	u.git("branch", "-q", "-D", "bottle/sh")

	oneLine(t, u.bottle("run", "sh", "--fetch", "--proxy", "builtin", "--yes"), "--fetch needs --cwd")
	oneLine(t, u.bottle("run", "sh", "--cwd-ignored", "--proxy", "builtin", "--yes"), "--cwd-ignored needs --cwd")
	oneLine(t, u.bottle("run", "sh", "--cwd", "--fetch", "--discard", "--proxy", "builtin", "--yes"), "fetch", "discard")

	const question = "Fetch it, apply it to your files, keep it or discard it? [f/a/K/d] "
	for _, c := range []struct {
		answers           []string
		want              string // in what follows the answer
		kept, unfetched   bool
		fetched, modified bool
	}{
		{[]string{"\n"}, "It is kept.", true, true, false, false},
		{[]string{"\x04"}, "It is kept.", true, true, false, false}, // the end of the input
		{[]string{"what\n", "yes\n", "no\n"}, "It is kept.", true, true, false, false},
		{[]string{"what\n", "d\n"}, "", false, false, false, false},
		{[]string{"Fetch\n"}, "1 commit", true, false, true, false},
		{[]string{"a\n"}, "M file", true, false, false, true},
	} {
		x := u.onTerminal(120, 50, "run", "sh", "--proxy", "builtin", "--yes", "-q", "--cwd", "--", "-c", commitInside)
		for _, answer := range c.answers {
			x.until(question)
			x.types(answer)
		}
		x.until(c.want)
		if code := x.wait(); code != 0 {
			t.Errorf("%q: exit %d", c.answers, code)
		}
		s, kept := u.listed("-a")[worker]
		if kept != c.kept || kept && s.Work.Unfetched != c.unfetched {
			t.Errorf("%q: kept %v: %+v", c.answers, kept, s.Work)
		}
		if fetched := u.git("branch", "--list", "bottle/sh") != ""; fetched != c.fetched {
			t.Errorf("%q: fetched %v", c.answers, fetched)
		}
		if modified := u.git("status", "--porcelain") != ""; modified != c.modified {
			t.Errorf("%q: the user's files are modified: %v", c.answers, modified)
		}
		if kept {
			u.bottle("rm", "--discard", "sh").want(t, 0, worker+"\n")
		}
		if c.fetched {
			u.git("branch", "-q", "-D", "bottle/sh")
		}
		u.git("reset", "-q", "--hard")
		u.git("clean", "-q", "-d", "-f")
	}
}

// TestSeveralAgents: three agents on one repository have three names and three branches,
// and list shows what each has.
func TestSeveralAgents(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.repository()
	t.Cleanup(func() { u.bottle("cleanup", "--yes", "--discard").want(t, 0, "") })
	agents := []string{"claude-bottle-wait", "claude-bottle-wait-2", "claude-bottle-wait-3"}
	var running []*live
	for _, name := range agents {
		running = append(running, begin(t, u.command("run", "wait", "--proxy", "builtin", "--yes", "-q", "--cwd"), name))
	}
	for i, name := range agents {
		for range i {
			u.exec(name, "sh", "-c", "echo x >>file && git -c user.name=agent -c user.email=a@b commit -qam agent").want(t, 0, "")
		}
	}
	check := func(list map[string]bottle.Status) {
		t.Helper()
		for i, name := range agents {
			if w := list[name].Work; w == nil || w.Summary == nil || w.Summary.Commits != i || w.Summary.Files != min(i, 1) {
				t.Errorf("list: %s: %+v", name, w)
			}
		}
	}
	check(u.listed())
	for _, l := range running[1:] {
		if code := l.end(); code != 0 {
			t.Errorf("exit %d\n%s", code, l.errs)
		}
	}
	check(u.listed("-a"))
	for i, name := range agents {
		if r := u.bottle("fetch", name); r.code != 0 {
			t.Errorf("fetch %s: exit %d\n%s", name, r.code, r.stderr)
		}
		if i == 0 {
			continue
		}
		if got := u.git("rev-list", "--count", "main..bottle/"+strings.TrimPrefix(name, "claude-bottle-")); got != strconv.Itoa(i) {
			t.Errorf("%s: %s commits", name, got)
		}
	}
	if code := running[0].end(); code != 0 {
		t.Errorf("exit %d\n%s", code, running[0].errs)
	}
}

// TestWorkSurvivesKill: the work outlives kill -9 of bottle run.
func TestWorkSurvivesKill(t *testing.T) {
	leakcheck.Check(t)
	for _, rt := range []string{"runsc", "runc"} {
		u := newUser(t)
		name := "claude-bottle-k"
		l := begin(t, u.command("run", "wait", "--proxy", "builtin", "--yes", "-q", "--cwd", "--name", name, "--runtime", rt), name)
		u.exec("k", "sh", "-c", "echo x >new").want(t, 0, "")
		if err := l.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		l.wait()
		u.exec("k", "sh", "-c", "cat new; echo y >>new").want(t, 0, "x\n") // the agent works on
		u.bottle("cleanup", "--yes").want(t, 0, "")
		if s := u.listed("-a")[name]; s.Status != "kept" || s.Work == nil || !s.Work.Unfetched {
			t.Errorf("%s: after cleanup: %+v, %+v", rt, s, s.Work)
		}
		u.bottle("apply", "k").want(t, 0, "A new\n")
		if got, err := os.ReadFile(u.dir + "/new"); string(got) != "x\ny\n" || err != nil {
			t.Errorf("%s: the file has %q, %v", rt, got, err)
		}
		u.bottle("rm", "--discard", "k").want(t, 0, name+"\n")
	}
}
