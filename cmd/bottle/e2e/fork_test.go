package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// asks has a connection with its proxy, over which it sends a request when it is told to.
const asks = `bash -c 'exec 3<>/dev/tcp/10.77.0.1/8888; touch /tmp/connected; until test -e /tmp/ask; do sleep 0.05; done
printf "GET http://allowed.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n" >&3; answer=none; read -r answer <&3; echo "answer: $answer" >/tmp/answer' 2>/dev/null &
`

// TestFork makes two bottles from one with state everywhere, an open connection, an injected
// secret and a git repository. Each continues from that state, separately, with a network, a
// proxy, a log and a branch of its own. The source keeps its connection, which no fork has. The
// injected secret works in a fork and is in none, and no memory image is left.
func TestFork(t *testing.T) {
	leakcheck.Check(t)
	s := newInjectScene(t, "claude-bottle-tree")
	u := s.u
	u.write("bottle.yaml", strings.Replace(injectManifest, "    egress:", "    limits: {workspace: 64MiB}\n    egress:", 1))
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-C", u.dir, "-c", "user.name=a", "-c", "user.email=a@b.test"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", args, err, out)
		}
		return string(out)
	}
	git("init", "-q")
	git("commit", "-q", "--allow-empty", "-m", "first")
	source := u.detached("tree", "--cwd", "--", asks+counts)
	pid := 0
	n := u.advances(source, &pid, 0)
	within(t, func() bool { return u.bottle("exec", source, "test", "-e", "/tmp/connected").code == 0 })
	u.bottle("exec", source, "sh", "-c", `echo "$GH_TOKEN" >/tmp/token`).want(t, 0, "")
	r := u.bottle("fork", "tree", "-n", "2")
	forks := []string{source + "-f1", source + "-f2"}
	r.want(t, 0, strings.Join(forks, "\n")+"\n")
	all := append([]string{source}, forks...)
	for _, name := range all {
		n := u.advances(name, &pid, n)
		u.advances(name, &pid, n)
		u.exec(name, "sh", "-c", "touch /tmp/ask; echo "+name+" >own").want(t, 0, "")
	}
	if images, _ := filepath.Glob("/run/bottle/*/*/memory"); len(images) > 0 {
		t.Errorf("memory images are left: %s", images)
	}
	for _, name := range all {
		want := map[bool]string{true: "answer: HTTP/1.1 200 OK\r\n", false: "answer: \n"}[name == source]
		within(t, func() bool { return u.bottle("exec", name, "cat", "/tmp/answer").stdout == want })
		u.exec(name, "cat", "own").want(t, 0, name+"\n")
		// Its client sees the screen of before the fork.
		x := u.onTerminal(90, 20, "attach", name)
		x.until("drawn once")
		x.types("\x10\x11")
		x.until("Detached")
		x.wait()
	}
	// What listens in the source is reached there, and from no fork, which has the same address.
	u.bottle("exec", "-T", source, "git", "daemon", "--detach", "--reuseaddr", "--port=7777", "--base-path=/tmp").want(t, 0, "")
	const probe = `(echo x >/dev/tcp/10.77.0.2/7777) 2>/dev/null && echo reached; curl -s -o /dev/null -w '%{http_connect}' --noproxy '' -p -x http://10.77.0.1:8888 http://10.77.0.2:7777/; true`
	for _, name := range forks {
		u.bottle("exec", "-T", name, "bash", "-c", probe).want(t, 0, "403")
	}
	u.bottle("exec", "-T", source, "bash", "-c", probe).want(t, 0, "reached\n403")
	// The policy is the source's of that moment, and then the fork's own.
	u.bottle("deny", forks[0], "wild.test").want(t, 0, "")
	const code = `curl -sS -o /dev/null -w '%{http_code}' http://wild.test/only-`
	for name, want := range map[string]string{forks[0]: "403", forks[1]: "404", source: "404"} {
		u.bottle("exec", "-T", name, "sh", "-c", code+name+"-end").want(t, 0, want)
		for _, other := range all {
			if log := u.bottle("egress", "--json", other).stdout; strings.Contains(log, "only-"+name+"-end") != (name == other) {
				t.Errorf("the request of %s in the log of %s: %s", name, other, log)
			}
		}
	}
	// The placeholder that is in the copied memory and files is worth what it was.
	url := "https://allowed.test/auth/" + hashOf(s.mine) + "/"
	for _, name := range all {
		r := u.bottle("exec", "-T", name, "sh", "-c", `curl -sS -H "Authorization: Bearer $(cat /tmp/token)" `+url)
		if !strings.Contains(r.stdout, "hello from allowed.test") {
			t.Errorf("%s: %s%s", name, r.stdout, r.stderr)
		}
	}
	found := s.Memory(forks[1])
	for _, root := range []string{"/run/bottle", "/var/lib/bottle", filepath.Join(os.Getenv("LAB_DISK"), "containerd")} {
		found = append(found, s.Files(root)...)
	}
	given := false
	for _, f := range found {
		what, _, _ := strings.Cut(f.Form, ", ")
		switch {
		case what == "given" && strings.HasSuffix(f.Place, "/guest/env"), strings.HasSuffix(f.Place, "/secrets.json"):
		case what == "given" && strings.HasPrefix(f.Place, "memory of "):
			given = true
		default:
			t.Errorf("%s: %s", f.Place, f.Form)
		}
	}
	if !given {
		t.Error("a secret that the agent has is not found in the fork's memory, so that the search shows nothing")
	}
	u.bottle("fetch", forks[1]).want(t, 0, "")
	if text := git("show", "bottle/"+strings.TrimPrefix(forks[1], "claude-bottle-")+":own"); text != forks[1]+"\n" {
		t.Errorf("the branch of %s has %q", forks[1], text)
	}
	// A fork can be forked and suspended.
	u.bottle("suspend", forks[1]).want(t, 0, forks[1]+"\n")
	u.bottle("fork", forks[0]).want(t, 0, forks[0]+"-f1\n")
	n = u.advances(forks[0]+"-f1", &pid, n)
	u.bottle("resume", forks[1]).want(t, 0, forks[1]+"\n")
	u.advances(forks[1], &pid, n)
	u.bottle("cleanup", "--yes", "--discard").want(t, 0, "")
}
