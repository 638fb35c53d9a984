package e2e

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/internal/labtest"
)

// asSudoer returns the user as another user who runs bottle with sudo, and owns the
// directory.
func (u user) asSudoer() user {
	u.t.Helper()
	const uid = 41001
	for dir := u.dir; dir != os.TempDir(); dir = filepath.Dir(dir) {
		u.chmod(dir, 0o755)
	}
	err := filepath.WalkDir(u.dir, func(path string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Lchown(path, uid, uid)) })
	if err != nil {
		u.t.Fatal(err)
	}
	ada := u.with(fmt.Sprintf("SUDO_UID=%d", uid), fmt.Sprintf("SUDO_GID=%d", uid))
	for _, kv := range u.env {
		if dir, ok := strings.CutPrefix(kv, "BOTTLE_STATE_DIR="); ok {
			configureHost(u.t, "state_dir: "+dir)
			u.t.Cleanup(func() { ada.bottle("build", "--prune").want(u.t, 0, "") }) // her own cache
		}
	}
	u.t.Cleanup(func() { // her own names
		list, err := exec.Command("ctr", "images", "ls", "-q").Output()
		if err != nil {
			u.t.Fatal(err)
		}
		for _, name := range strings.Fields(string(list)) {
			if strings.HasPrefix(name, fmt.Sprintf("bottle.u%d/", uid)) {
				ctr(u.t, "images", "rm", "--sync", name)
			}
		}
	})
	return ada
}

// configureHost adds a line to the system configuration until the test ends.
func configureHost(t *testing.T, line string) {
	t.Helper()
	const file = "/etc/bottle/config.yaml"
	before, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append(slices.Clone(before), line+"\n"...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, before, 0o644); err != nil {
			t.Error(err)
		}
	})
}

func (u user) chmod(path string, mode fs.FileMode) {
	u.t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		u.t.Fatal(err)
	}
}

// TestCallersRights: with sudo, builds and --cwd read files with the rights of the user
// who ran sudo. The control is the same for root.
func TestCallersRights(t *testing.T) {
	u := newBuilder(t).with("CLAUDE_BOTTLE_DERIVED_IMAGE=e2e-caller:cwd")
	removeImage(t, "e2e-caller:cwd")
	u.dockerfile("FROM scratch\nCOPY . /\n")
	u.write("bottle.yaml", strings.ReplaceAll(strings.ReplaceAll(manifest, "bottles:\n", "bottles:\n  own: {image: e2e-caller:own, build: {context: img}}\n"),
		"agents:\n", "agents:\n  own: {bottle: own, command: [sh]}\n"))
	removeImage(t, "e2e-caller:own")
	ada := u.asSudoer()
	u.write("img/victim", "another user's\n") // root's, 0600
	victim := filepath.Join(u.dir, "img/victim")
	run := []string{"run", "sh", "--proxy", "builtin", "--yes", "-q", "--cwd-image", "--", "-c", "cat img/victim"}
	build := []string{"build", "-q", "-t", "e2e-caller:build", "img"}
	removeImage(t, "e2e-caller:build")

	oneLine(t, ada.bottle(build...), "no permission to read: img/victim", ".dockerignore")
	own := ada.bottle("run", "own", "--proxy", "builtin", "--yes", "-q")
	if own.code != 125 || !strings.Contains(own.stderr, "no permission to read: "+victim) {
		t.Errorf("build of the manifest: exit %d\n%s", own.code, own.stderr)
	}
	cwd := ada.bottle(run...)
	if cwd.code != 125 || cwd.stdout != "" || !strings.Contains(cwd.stderr, "no permission to read: img/victim") || !strings.Contains(cwd.stderr, ".bottleignore") {
		t.Errorf("--cwd-image: exit %d, %q\n%s", cwd.code, cwd.stdout, cwd.stderr)
	}
	shadow := ada.bottle("build", "-q", "-f", "img/Dockerfile", "/etc")
	if shadow.code != 125 || !strings.Contains(shadow.stderr, "no permission to read: /etc/") {
		t.Errorf("/etc as context: exit %d\n%s", shadow.code, shadow.stderr)
	}
	if r := u.bottle(build...); r.code != 0 {
		t.Errorf("control: exit %d\n%s", r.code, r.stderr)
	}
	// Root must name the other user's manifest.
	control := append([]string{"--manifest", filepath.Join(u.dir, "bottle.yaml")}, run...)
	u.bottle(control...).want(t, 0, "another user's\n")

	// An excluded file is not an error.
	u.write("img/.dockerignore", "victim\n")
	u.write(".bottleignore", "img/victim\n")
	for _, name := range []string{"img/.dockerignore", ".bottleignore"} {
		u.chmod(filepath.Join(u.dir, name), 0o644)
	}
	if r := ada.bottle(build...); r.code != 0 {
		t.Errorf("with .dockerignore: exit %d\n%s", r.code, r.stderr)
	}
	run[len(run)-1] = "cat img/victim || echo not there"
	ada.bottle(run...).want(t, 0, "not there\n")
}

// TestBuildMirror: builds use the directory of hosts.toml files and the login for the
// mirror in it. A refusal names the mirror.
func TestBuildMirror(t *testing.T) {
	u := newBuilder(t)
	r := labtest.PrivateRegistry(t)
	const upstream = "upstream.test"
	t.Run("push", func(t *testing.T) { // its end removes the image
		ref := r.Host + "/mirrored:1"
		labtest.PutImage(t, ref, ocispec.ImageConfig{}, map[string][]byte{"given": []byte("x")})
		u.logged(r).bottle("push", "-q", ref).want(t, 0, "")
	})
	hosts := t.TempDir()
	if err := os.Mkdir(filepath.Join(hosts, upstream), 0o755); err != nil {
		t.Fatal(err)
	}
	toml := fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%s\"]\n  ca = %q\n  capabilities = [\"pull\", \"resolve\"]\n", upstream, r.Host, r.CA)
	if err := os.WriteFile(filepath.Join(hosts, upstream, "hosts.toml"), []byte(toml), 0o600); err != nil {
		t.Fatal(err)
	}
	u.dockerfile("FROM " + upstream + "/mirrored:1\nCOPY Dockerfile /\n")
	build := func(u user, flags ...string) result {
		return u.bottle(append([]string{"build", "-q", "--no-cache", "img"}, flags...)...)
	}
	anonymous := u.with("DOCKER_CONFIG=" + t.TempDir())
	oneLine(t, build(anonymous, "--hosts-dir", hosts), "Dockerfile:1", "access denied by "+r.Host, "log in to "+r.Host+":")
	oneLine(t, build(anonymous, "--hosts-dir", hosts+"/missing"), "read registry settings in "+hosts+"/missing")
	oneLine(t, build(u.logged(r)), upstream) // whose hosts directory has no mirror
	if res := build(u.logged(r), "--hosts-dir", hosts); res.code != 0 {
		t.Errorf("--hosts-dir: exit %d\n%s", res.code, res.stderr)
	}
	if res := build(u.logged(r).with("BOTTLE_HOSTS_DIR=" + hosts)); res.code != 0 {
		t.Errorf("BOTTLE_HOSTS_DIR: exit %d\n%s", res.code, res.stderr)
	}
	// The same mirror refuses a pull.
	oneLine(t, anonymous.bottle("pull", "-q", "--hosts-dir", hosts, upstream+"/mirrored:1"), "from mirror "+r.Host, "log in to "+r.Host+":")
}

// TestBuildSSH forwards the agent at SSH_AUTH_SOCK or at a given socket.
func TestBuildSSH(t *testing.T) {
	u := newBuilder(t)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	socket := serveAgent(t, key)
	u.dockerfile("FROM bottle-demo:latest\nRUN --mount=type=ssh,required test -S $SSH_AUTH_SOCK\n")
	for _, good := range []result{
		u.with("SSH_AUTH_SOCK="+socket).bottle("build", "-q", "--ssh", "default", "img"),
		u.with("SSH_AUTH_SOCK=").bottle("build", "-q", "--ssh", "default="+socket, "img"),
	} {
		if good.code != 0 {
			t.Errorf("exit %d\n%s", good.code, good.stderr)
		}
	}
	without := u.with("SSH_AUTH_SOCK=")
	oneLine(t, without.bottle("build", "-q", "img", "--no-cache"), "ssh")
	oneLine(t, without.bottle("build", "-q", "--ssh", "default", "img"), "SSH_AUTH_SOCK is not set")
	oneLine(t, without.bottle("build", "-q", "--ssh", "=x", "img"), "invalid --ssh")
	oneLine(t, without.bottle("build", "-q", "--ssh", "default="+socket+"-none", "img"), "connect to ssh agent default", "no such file")
}
