package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestMistakes checks that a user's mistake is reported on one line, with a hint on
// the next, and that nothing is created.
func TestMistakes(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("broken.yaml", "version: 1\nbottles:\n  dev:\n    imagee: x\n")
	u.write("syntax.yaml", "version: 1\nbottles: [\n")
	empty := t.TempDir()
	run := []string{"run", "sh", "--proxy", "builtin", "--yes"}
	for _, c := range []struct {
		name string
		user user
		args []string
		want []string // in error and hint, in this order
	}{
		{"no containerd", u, append([]string{"--address", "/run/nobody.sock"}, run...),
			[]string{"cannot connect to containerd at /run/nobody.sock", "--address"}},
		{"not a socket", u.with("CONTAINERD_ADDRESS=" + u.dir + "/bottle.yaml"), run,
			[]string{"cannot connect to containerd at", "CONTAINERD_ADDRESS"}},
		{"missing plugin", u.with("CNI_PATH=" + empty), run, []string{"missing CNI plugin: bridge", empty, "CNI_PATH"}},
		{"missing image", u.with("CLAUDE_BOTTLE_IMAGE=nowhere.test/none:1"), append(run, "--pull", "never"), []string{"nowhere.test/none:1", "bottle pull"}},
		{"bad pull", u, append(run, "--pull", "often"), []string{`"often"`, "always, missing, never"}},
		{"home as --cwd", u.with("HOME=" + u.dir), append(run, "--cwd"), []string{u.dir, "home directory", "--cwd-force"}},
		{"pull nothing", u, []string{"pull"}, []string{"expected exactly one image name", "bottle pull registry.example/name:tag"}},
		{"pull no name", u, []string{"pull", "A B"}, []string{`"A B"`, "NAME:TAG"}},
		{"pull from nobody", u, []string{"pull", "127.0.0.1:1/a:1"}, []string{"127.0.0.1:1", "registry is not reachable", "refused", "hosts.toml"}},
		{"push nothing there", u, []string{"push", "127.0.0.1:1/a:1"}, []string{"127.0.0.1:1/a:1", "bottle images"}},
		{"rmi nothing there", u, []string{"rmi", "none:1"}, []string{"none:1", "bottle images"}},
		{"unknown agent", u, []string{"run", "nobody"}, []string{`unknown agent "nobody"`, "known agents: claude, deaf, offline, sh, trap, wait"}},
		{"nearly an agent", u, []string{"run", "claud"}, []string{`did you mean "claude"?`}},
		{"malformed manifest", u, append([]string{"--manifest", "broken.yaml"}, run...), []string{"broken.yaml:4:5: ", "imagee", `"image"`}},
		{"manifest's syntax", u, append([]string{"--manifest", "syntax.yaml"}, run...), []string{"syntax.yaml:"}},
		{"no such manifest", u, append([]string{"--manifest", "none.yaml"}, run...), []string{"none.yaml", "--manifest"}},
		{"no manifest", user{t: t, dir: empty}.with("HOME=" + empty), run, []string{"no manifest found", "bottle.yaml", "--manifest"}},
		{"bad flag", u, append(run, "--rntime", "runc"), []string{"--rntime", "bottle run --help"}},
		{"bad command", u, []string{"rnu", "sh"}, []string{`unknown command "rnu" for "bottle"`, `did you mean "rm", "rmi" or "run"?`}},
		{"no agent", u, []string{"run"}, []string{"missing agent name", "bottle run AGENT"}},
		{"two agents", u, append(run, "more"), []string{`"more"`, "after --"}},
		{"bad runtime", u, append(run, "--runtime", "kata"), []string{`"kata"`, "runsc or runc"}},
		{"bad proxy", u, []string{"run", "sh", "--proxy", "squid", "--yes"}, []string{`"squid"`, "--proxy builtin"}},
		{"default proxy", u, []string{"run", "sh", "--yes", "--pull", "never"}, []string{"pipelock", "--proxy builtin"}},
		{"unset variable", u, append(run, "-e", "NOT_SET_HERE"), []string{"NOT_SET_HERE", "set"}},
		{"bad name", u, append(run, "--name", "a/b"), []string{`"a/b"`, "letters"}},
		{"no runsc", u.with("PATH=" + without(t, "runsc")), run, []string{"runsc is not in PATH", "gvisor.dev"}},
		{"namespace net", u, append([]string{"--namespace", "net"}, run...), []string{"--namespace"}},
		{"exec nowhere", u, []string{"exec", "nobody", "true"}, []string{"no such bottle: nobody", "bottle list"}},
		{"exec nothing", u, []string{"exec", "nobody"}, []string{"bottle exec NAME COMMAND"}},
		{"rm nothing", u, []string{"rm", "nobody"}, []string{"no such bottle: nobody"}},
		{"list more", u, []string{"list", "more"}, []string{`"more"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			leakcheck.Check(t)
			c.user.t = t
			oneLine(t, c.user.bottle(c.args...), c.want...)
		})
	}
}

// oneLine checks for a single error, with a hint or without.
func oneLine(t *testing.T, r result, want ...string) {
	t.Helper()
	rest := r.stderr
	for _, w := range want {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Errorf("no %q in %q", w, rest)
		}
		rest = after
	}
	if r.code != 125 || r.stdout != "" || !isOneError(r.stderr) {
		t.Errorf("exit %d, standard output %q, standard error %q; want 125, nothing and one error", r.code, r.stdout, r.stderr)
	}
}

// isOneError reports whether text is an error on one line, and perhaps a hint on
// the next.
func isOneError(text string) bool {
	message, rest, ok := strings.Cut(text, "\n")
	if !ok || !strings.HasPrefix(message, "bottle: ") {
		return false
	}
	return rest == "" || strings.HasPrefix(rest, "hint: ") && strings.Index(rest, "\n") == len(rest)-1
}

// without is a PATH with all that bottle runs but one program.
func without(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"runsc", "runc"} {
		if name == program {
			continue
		}
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestNotRoot runs bottle as a user without access to containerd's socket.
func TestNotRoot(t *testing.T) {
	leakcheck.Check(t)
	oneLine(t, finish(t, newUser(t).asNobody("run", "sh", "--proxy", "builtin", "--yes")), "permission denied", "sudo bottle")
}

// asNobody is a command of an unprivileged user: it runs a copy of the program in a
// directory with a manifest that everybody can read.
func (u user) asNobody(args ...string) *exec.Cmd {
	t := u.t
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bottle-anybody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := u.command(args...)
	program, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = filepath.Join(dir, "bottle")
	if err := os.WriteFile(cmd.Path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd.Dir = dir
	cmd.Env = append(cmd.Env, "XDG_STATE_HOME="+filepath.Join(dir, "state"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	return cmd
}

func TestPinnedName(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-mine")
	r := u.bottle("run", "sh", "--proxy", "builtin", "--yes", "--name", l.name)
	oneLine(t, r, "bottle name claude-bottle-mine is taken", "bottle rm -f claude-bottle-mine", "--name", "CLAUDE_BOTTLE_CONTAINER")
	r = u.with("CLAUDE_BOTTLE_CONTAINER="+l.name).bottle("run", "sh", "--proxy", "builtin", "--yes")
	oneLine(t, r, "bottle name claude-bottle-mine is taken")
}
