package e2e

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// sharedManifest has an agent for each way in which a manifest or its user names a file.
const sharedManifest = `version: 1
bottles:
  dev: {egress: {allow: [allowed.test]}}
  skilled: {}
  built: {image: e2e-built, build: {context: private/img}}
  ssh:
    ssh: [{Host: box, HostName: ssh.allowed.test, HostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMXzLOKiMaFavzePnIti3zo3Ccxii84yQm7sMFRspFsd}]
agents:
  sh: {bottle: dev, command: [sh]}
  skilled: {bottle: skilled, command: [sh], skills: [review]}
  built: {bottle: built, command: [sh]}
  ssh: {bottle: ssh, command: [sh]}
`

// TestCallersFiles: with sudo, what the user names is opened, connected to and written
// with the rights of the user who ran sudo. Each victim is root's; in the control root
// does the same.
func TestCallersFiles(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", sharedManifest)
	u.mkdirs("home/.claude/skills/review", "below")
	ada := u.asSudoer().with("SUDO_HOME="+filepath.Join(u.dir, "home"), "XDG_STATE_HOME=")
	root := u.with("HOME="+filepath.Join(u.dir, "home"), "SUDO_UID=", "XDG_STATE_HOME="+t.TempDir())
	// From here on, new files are root's.
	u.write("victim.env", "A=1\n")
	u.write("home/.claude/skills/review/SKILL.md", "text")
	u.mkdirs("private/img", "private/work")
	u.chmod(filepath.Join(u.dir, "private"), 0o700)
	u.write("private/img/Dockerfile", "FROM scratch\n")
	u.mkdirs("owned", "hidden")
	u.write("hidden/bottle.yaml", sharedManifest)
	u.write("owned/bottle.yaml", sharedManifest)
	u.chmod(filepath.Join(u.dir, "owned/bottle.yaml"), 0o644)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	socket := serveAgent(t, key)
	u.chmod(socket, 0o600)

	dry := func(agent string, more ...string) []string {
		return append([]string{"--manifest", filepath.Join(u.dir, "bottle.yaml"), "run", agent, "--proxy", "builtin", "--dry-run"}, more...)
	}
	at := func(u user, dir string) user {
		u.dir = filepath.Join(u.dir, dir)
		return u
	}
	for name, c := range map[string]struct {
		dir     string
		args    []string
		env     string
		refused []string // of the error's line
		control string   // in the output of the control
	}{
		"--env-file":        {"", dry("sh", "--env-file", "victim.env"), "", []string{"open victim.env: permission denied"}, "A (env file from victim.env)"},
		"skill":             {"", dry("skilled"), "", []string{"skill 'review': SKILL.md: not readable by you"}, "review"},
		"build context":     {"", dry("built"), "", []string{"the build context", "is not a directory"}, "e2e-built"},
		"ssh agent":         {"", dry("ssh"), "SSH_AUTH_SOCK=" + socket, []string{"ssh key of box: list the keys of your ssh agent", "permission denied"}, "signs with 1 key"},
		"working directory": {"private/work", dry("sh", "--cwd"), "", []string{"resolve the working directory", "permission denied"}, "private/work"},
		"manifest":          {"", []string{"--manifest", "hidden/bottle.yaml", "config", "check"}, "", []string{"read manifest", "permission denied"}, "is valid"},
		"--save":            {"", []string{"--manifest", "owned/bottle.yaml", "allow", "sh", "new.test", "--save"}, "", []string{"update manifest", "permission denied"}, "Saved"},
		"init":              {"", []string{"--manifest", "owned/new.yaml", "init"}, "", []string{"create manifest", "permission denied"}, "Wrote"},
	} {
		t.Run(name, func(t *testing.T) {
			oneLine(t, at(ada, c.dir).with(c.env).bottle(c.args...), c.refused...)
			if r := at(root, c.dir).with(c.env).bottle(c.args...); r.code != 0 || !strings.Contains(r.stderr, c.control) {
				t.Errorf("control: exit %d, want %q\n%s", r.code, c.control, r.stderr)
			}
		})
	}
}

// TestCallersPipe: a pipe of --env-file is read when the run is confirmed, with the
// rights of the user who ran sudo.
func TestCallersPipe(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	ada := u.asSudoer()
	own, victim := filepath.Join(u.dir, "own.pipe"), filepath.Join(u.dir, "victim.pipe")
	for _, pipe := range []string{own, victim} {
		if err := unix.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(own, 41001, 41001); err != nil {
		t.Fatal(err)
	}
	run := func(u user, pipe string, more ...string) result {
		return u.bottle(append([]string{"--manifest", filepath.Join(u.dir, "bottle.yaml"), "run", "sh", "--proxy", "builtin", "--env-file", pipe}, more...)...)
	}
	write := func(pipe string) chan error {
		written := make(chan error, 1)
		go func() { written <- os.WriteFile(pipe, []byte("PIPED=value\n"), 0o600) }()
		return written
	}
	script := []string{"--yes", "--", "-c", "echo $PIPED"}
	written := write(own)
	if r := run(ada.says("n\n"), own); r.code != 1 || !strings.Contains(r.stderr, "those of "+own+" (read when the run starts)") {
		t.Errorf("answered no: exit %d\n%s", r.code, r.stderr)
	}
	select {
	case err := <-written:
		t.Errorf("the pipe was read before the run was confirmed: %v", err)
	default:
	}
	run(ada, own, script...).want(t, 0, "value\n")
	if err := <-written; err != nil {
		t.Error(err)
	}

	written = write(victim)
	if r := run(ada, victim, script...); r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, "open "+victim+": permission denied") {
		t.Errorf("another user's pipe: exit %d, %q\n%s", r.code, r.stdout, r.stderr)
	}
	select {
	case err := <-written:
		t.Errorf("another user's pipe was opened: %v", err)
	default:
	}
	run(u, victim, script...).want(t, 0, "value\n")
	if err := <-written; err != nil {
		t.Errorf("control: %v", err)
	}

	u = newUser(t) // root's manifest
	l := u.start("claude-bottle-pipe")
	written = write(victim)
	u.bottle("exec", "--env-file", victim, l.name, "sh", "-c", "echo $PIPED").want(t, 0, "value\n")
	if err := <-written; err != nil {
		t.Error(err)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}

func (u user) mkdirs(names ...string) {
	u.t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(u.dir, name), 0o755); err != nil {
			u.t.Fatal(err)
		}
	}
}
