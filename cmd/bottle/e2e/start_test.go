package e2e

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestStart runs the agent of a stopped bottle again, and that of a removed one whose work
// is kept: each finds the workspace as the one before has left it.
func TestStart(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("file", "1\n")
	name := u.detached("again", "--cwd", "-T", "--", "-c", "echo 2 >>file; exit 3")
	u.bottle("wait", name).want(t, 0, "3\n")
	start := func(command string) result {
		return u.bottle("start", "again", "--trust", "--yes", "--proxy", "builtin", "--", "-c", command)
	}
	start("cat file; echo 3 >>file; exit 4").want(t, 4, "1\n2\n")
	u.bottle("list", "-a", "--format", "{{.Name}} {{.Status}}").want(t, 0, name+" kept\n")
	start("cat file").want(t, 0, "1\n2\n3\n")
	u.bottle("start", "again", "-d", "--trust", "--yes", "--proxy", "builtin", "--", "-c", "cat file; read x; exit 5").want(t, 0, name+"\n")
	oneLine(t, start("true"), name+" is running", "bottle attach "+name)
	u.bottle("rm", "-f", "--discard", "again").want(t, 0, name+"\n")

	name = u.detached("none", "-T", "--", "-c", "true")
	u.bottle("wait", name).want(t, 0, "0\n")
	oneLine(t, u.bottle("start", "none"), name+" has no workspace", "bottle run --cwd")
	u.bottle("rm", "none").want(t, 0, name+"\n")
}

// TestStats measures a busy bottle.
func TestStats(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	name := u.detached("busy", "-T", "--", "-c", "while :; do :; done")
	r := u.bottle("stats", "--no-stream", "--format", "json", name)
	var s struct {
		Name   string
		CPU    float64 `json:"cpu_percent"`
		Memory int64   `json:"memory_bytes"`
		Limit  int64   `json:"memory_limit_bytes"`
		Pids   int
	}
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil || s.Name != name || s.CPU <= 0 || s.Memory <= 0 || s.Limit != 4<<30 || s.Pids < 2 {
		t.Errorf("%v %+v\n%s%s", err, s, r.stdout, r.stderr)
	}
	if r := u.bottle("stats", "--no-stream"); r.code != 0 || !strings.HasPrefix(r.stdout, "NAME ") || !strings.Contains(r.stdout, "\n"+name+" ") {
		t.Errorf("exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	u.bottle("stop", "-t", "0", name).want(t, 0, name+"\n")
	r = u.bottle("stats", "--no-stream", name)
	if r.code != 125 || !strings.Contains(r.stderr, "not running") {
		t.Errorf("stopped: exit %d\n%s", r.code, r.stderr)
	}
	u.bottle("rm", name).want(t, 0, name+"\n")
}
