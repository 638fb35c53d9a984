package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/manifest"
)

// inDir runs bottle in a directory, for commands that need neither root nor
// containerd.
func inDir(t *testing.T, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	t.Chdir(dir)
	t.Setenv("XDG_STATE_HOME", t.TempDir())
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), code
}

func TestInit(t *testing.T) {
	dir := t.TempDir()
	out, errs, code := inDir(t, dir, "init")
	path := filepath.Join(dir, "bottle.yaml")
	if code != 0 || out != "" || errs != "Wrote "+path+". Edit it, then run bottle config check.\n" {
		t.Fatalf("exit %d, %q, %q", code, out, errs)
	}
	text, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(text, manifest.Starter) {
		t.Fatalf("wrote %q, %v", text, err)
	}
	if _, errs, code := inDir(t, dir, "config", "check"); code != 0 || errs != path+" is valid: 1 bottle, 1 agent.\n" {
		t.Errorf("exit %d, %q", code, errs)
	}
	// An existing manifest of any name is kept.
	for _, name := range []string{"bottle.yaml", "bottle.yml", "bottle.json"} {
		dir := t.TempDir()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, errs, code := inDir(t, dir, "init")
		if want := "bottle: manifest already exists: " + path + "\nhint: edit it, or move it away\n"; code != 125 || errs != want {
			t.Errorf("exit %d, %q", code, errs)
		}
		_, errs, code = inDir(t, dir, "init", "--manifest", path)
		if code != 125 || !strings.Contains(errs, "already") {
			t.Errorf("with --manifest: exit %d, %q", code, errs)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
			t.Errorf("%s was changed to %q, %v", name, text, err)
		}
	}
	if _, errs, code := inDir(t, t.TempDir(), "init", "--manifest", "none/here.yaml"); code != 125 ||
		!strings.Contains(errs, "none/here.yaml") || !strings.Contains(errs, "mkdir -p none") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// TestInitUnderSudo writes the manifest in ~/.config/bottle with the rights of the
// invoking user: the new directories belong to that user, and neither another user's
// directory nor one that a symbolic link leads to is written.
func TestInitUnderSudo(t *testing.T) {
	home := homeOf(t, 4242, 4243)
	t.Setenv("HOME", home)
	path := filepath.Join(home, ".config/bottle/bottle.yaml")
	c := caller.Caller{WorkDir: home, Home: home, UID: 4242, GID: 4243}
	if got, err := manifest.WriteStarter(path, c); err != nil || got != path {
		t.Fatalf("got %s, %v", got, err)
	}
	for p := path; p != home; p = filepath.Dir(p) {
		var st syscall.Stat_t
		if err := syscall.Stat(p, &st); err != nil || st.Uid != 4242 || st.Gid != 4243 {
			t.Errorf("%s is of %d:%d, %v", p, st.Uid, st.Gid, err)
		}
	}
	// This process is not that user, whose manifest it would refuse.
	for p := path; p != filepath.Dir(home); p = filepath.Dir(p) {
		if err := os.Chown(p, os.Getuid(), os.Getgid()); err != nil {
			t.Fatal(err)
		}
	}
	if _, errs, code := inDir(t, t.TempDir(), "config", "check"); code != 0 || errs != path+" is valid: 1 bottle, 1 agent.\n" {
		t.Errorf("not found from another directory: exit %d, %q", code, errs)
	}
	other := homeOf(t, 4343, 4343)
	if got, err := manifest.WriteStarter(filepath.Join(other, "bottle.yaml"), c); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("wrote %s, %v", got, err)
	}
	if got, err := manifest.WriteStarter(filepath.Join(other, "bottle.yaml"), caller.Caller{Home: other}); err != nil {
		t.Errorf("control: wrote %s, %v", got, err)
	}
	elsewhere := homeOf(t, 4242, 4243)
	c.Home = homeOf(t, 4242, 4243)
	if err := os.Symlink(elsewhere, filepath.Join(c.Home, ".config")); err != nil {
		t.Fatal(err)
	}
	if got, err := manifest.WriteStarter(filepath.Join(c.Home, ".config/bottle/bottle.yaml"), c); err == nil {
		t.Errorf("wrote %s", got)
	}
	if made, err := os.ReadDir(elsewhere); err != nil || len(made) > 0 {
		t.Errorf("made %v, %v", made, err)
	}
}

// homeOf returns a directory that belongs to a user and that all users can reach.
func homeOf(t *testing.T, uid, gid int) string {
	t.Helper()
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chown(dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	return dir
}

const shownManifest = `version: 1
bottles:
  dev:
    image: base
    build: {context: sub, dockerfile: D, args: {TOKEN: hunter2}, secrets: {npm: NPM}}
    env: {A: hunter2, B: , C: {from: D}, E: {prompt: "Key?"}, F: {file: keys/f}}
    egress: {allow: [b.example, a.example], allow_private: [10.0.0.0/8]}
    ssh: [{Host: work, IdentityFile: id}]
    git: {name: A, email: a@b}
    limits: {cpus: 2}
  bare: {}
agents:
  impl: {bottle: dev, command: [claude, "-p", "a b"], prompt: hunter2, skills: [review]}
  other: {bottle: bare}
`

func TestConfigShow(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(shownManifest), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := inDir(t, dir, "config", "show")
	want := strings.ReplaceAll(`agent impl
  bottle                    dev (DIR/bottle.yaml)
  image                     docker.io/library/base:latest
  build                     DIR/sub; dockerfile D; args TOKEN; secrets npm
  command                   claude -p "a b"
  variables                 A, B (forwarded), C (forwarded from D), E (prompt), F (file from DIR/keys/f)
  allowed hosts             a.example, b.example
  private networks allowed  10.0.0.0/8
  prompt                    7 bytes
  skills                    review
  ssh host                  work: work:22, any user, host key from known_hosts, signs with DIR/id
  git                       A <a@b>
  limits                    memory 4 GiB, disk 20 GiB, workspace 10 GiB, 4096 processes, 2 CPUs

agent other
  bottle         bare (DIR/bottle.yaml)
  image          docker.io/library/claude-bottle:latest
  command        the image's
  variables      none
  allowed hosts  none
  prompt         none
  skills         none
  ssh hosts      none
  limits         memory 4 GiB, disk 20 GiB, workspace 10 GiB, 4096 processes
`, "DIR", dir)
	if code != 0 || errs != "" || out != want {
		t.Errorf("exit %d, %q\ngot\n%s\nwant\n%s", code, errs, out, want)
	}
	out, _, code = inDir(t, dir, "config", "show", "impl", "--json")
	var list []manifest.Description
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 {
		t.Fatalf("exit %d, %v: %s", code, err, out)
	}
	if strings.Contains(out, "hunter2") || len(list) != 1 || list[0].SSH[0].IdentityFile != filepath.Join(dir, "id") {
		t.Errorf("got %s", out)
	}
	if _, errs, code := inDir(t, dir, "config", "show", "imp"); code != 125 || !strings.Contains(errs, `did you mean "impl"?`) {
		t.Errorf("exit %d, %q", code, errs)
	}
	if _, errs, code := inDir(t, dir, "config", "show", "impl", "other"); code != 125 || !strings.Contains(errs, "other") {
		t.Errorf("exit %d, %q", code, errs)
	}
}

// TestConfigCheck reports all errors with their positions.
func TestConfigCheck(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bottle.yaml")
	if err := os.WriteFile(path, []byte("version: 2\nbottels: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, errs, code := inDir(t, dir, "config", "check")
	want := "bottle: " + path + ":1:10: invalid version: expected the number 1, got 2\n" +
		"bottle: " + path + ":2:1: unknown key \"bottels\" in the manifest\nhint: did you mean \"bottles\"?\n"
	if code != 125 || out != "" || errs != want {
		t.Errorf("exit %d, %q\ngot  %s\nwant %s", code, out, errs, want)
	}
}

func TestConfigSchema(t *testing.T) {
	out, errs, code := inDir(t, t.TempDir(), "config", "schema")
	if code != 0 || errs != "" || out != string(manifest.Schema) {
		t.Errorf("exit %d, %q, %d bytes", code, errs, len(out))
	}
}
