package e2e

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestSocketsOfAgent: sockets that the agent creates are in its sandbox only, although PID 1 may
// connect to those of bottle's in the guest directory, where the agent can create none. The
// control is runc, under which a socket in the workspace is one on the host.
func TestSocketsOfAgent(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	for _, runtime := range []string{"runsc", "runc"} {
		name := "claude-bottle-sockets-" + runtime
		l := begin(t, u.command("run", "wait", "--proxy", "builtin", "--runtime", runtime, "--yes", "--discard", "--cwd", "--name", name), name)
		u.exec(name, "sh", "-c", `ssh-agent -a /workspace/made.sock >/dev/null && test -S /workspace/made.sock && echo there
			ssh-agent -a /.bottle/made.sock >/dev/null 2>&1 || echo refused`).want(t, 0, "there\nrefused\n")
		if found := madeSockets(t, filepath.Join("/run/bottle", os.Getenv("CONTAINERD_NAMESPACE"), name)); found != (runtime == "runc") {
			t.Errorf("%s: a socket of the agent is on the host: %v", runtime, found)
		}
		if code := l.end(); code != 0 {
			t.Errorf("%s: exit %d\n%s", runtime, code, l.errs)
		}
	}
}

// madeSockets reports whether the agent's socket is below a directory on the host.
func madeSockets(t *testing.T, dir string) (found bool) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		found = found || err == nil && e.Name() == "made.sock" && e.Type() == fs.ModeSocket
		return nil // files of the sandbox come and go
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
