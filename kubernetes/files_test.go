package kubernetes

import (
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/provision"
)

// mountConfigMap writes a ConfigMap of an export as kubelet mounts it.
func mountConfigMap(t *testing.T, text string, opt Options) string {
	t.Helper()
	dir := t.TempDir()
	files := decode(t, exported(t, text, opt)).maps[1]
	for key, value := range files.Data {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for key, value := range files.BinaryData {
		if err := os.WriteFile(filepath.Join(dir, key), value, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestFiles: what the init container copies and the agent's start writes is what an agent
// finds on one host, and the image's own settings are kept.
func TestFiles(t *testing.T) {
	from, to, home := mountConfigMap(t, read(t, "claude.yaml"), cases[0].opt), t.TempDir(), t.TempDir()
	own := filepath.Join(t.TempDir(), "bottle")
	if err := os.WriteFile(own, []byte("bottle's program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a restarted init container
		guest := func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("the guest program")), nil }
		if err := CopyFiles(from, to, Programs{Bottle: own, Guest: guest}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(path, text string, mode fs.FileMode) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil || string(data) != text {
			t.Errorf("%s: %q, %v; want %q", path, data, err, text)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v, want mode %o", path, fi.Mode(), mode)
		}
	}
	want(filepath.Join(to, "bottle"), "bottle's program", 0o755)
	want(filepath.Join(to, "init"), "the guest program", 0o755)
	want(filepath.Join(to, "prompt"), "Write tests.\nThen stop.\n", 0o644)
	if fi, err := os.Stat(filepath.Join(to, "run")); err != nil || !fi.IsDir() {
		t.Errorf("no directory to mount on: %v", err)
	}

	if err := os.WriteFile(filepath.Join(home, ".claude.json"), []byte(`{"theme": "dark"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a restarted container
		if err := writeHome(to, provision.Image{Home: home, UserHome: home, WorkDir: "/workspace", UID: 1000}); err != nil {
			t.Fatal(err)
		}
	}
	skills := filepath.Join(home, ".claude/skills/review")
	want(filepath.Join(skills, "SKILL.md"), "Review it.\n", 0o644)
	want(filepath.Join(skills, "bin/check.sh"), "#!/bin/sh\n", 0o755)
	want(filepath.Join(skills, "data/logo.png"), "\x89PNG\xff", 0o644)
	data, err := os.ReadFile(filepath.Join(home, ".claude.json"))
	var state struct {
		Theme     string
		Completed bool                       `json:"hasCompletedOnboarding"`
		Projects  map[string]json.RawMessage `json:"projects"`
	}
	if err != nil || json.Unmarshal(data, &state) != nil || state.Theme != "dark" || !state.Completed || state.Projects["/workspace"] == nil {
		t.Errorf("state %s, %v", data, err)
	}
	if data, err := os.ReadFile(filepath.Join(home, ".gitconfig")); err != nil || !strings.Contains(string(data), "A Name") {
		t.Errorf("git's settings %s, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(home, ".ssh")); !os.IsNotExist(err) {
		t.Errorf("there is a configuration of ssh: %v", err)
	}
}

// Without a guest program in the binary, bottle's own is used.
func TestFilesMinimal(t *testing.T) {
	from, to := mountConfigMap(t, read(t, "minimal.yaml"), cases[2].opt), t.TempDir()
	own := filepath.Join(t.TempDir(), "bottle")
	if err := os.WriteFile(own, []byte("bottle's program"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := CopyFiles(from, to, Programs{Bottle: own}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(to, "init")); err != nil || string(data) != "bottle's program" {
		t.Errorf("%q, %v", data, err)
	}
	if _, err := os.Stat(filepath.Join(to, "prompt")); !os.IsNotExist(err) {
		t.Errorf("there is a prompt: %v", err)
	}
	if err := CopyFiles(t.TempDir(), to, Programs{Bottle: own}); err == nil || !strings.Contains(err.Error(), "agent.json") {
		t.Errorf("without a ConfigMap: %v", err)
	}
	if err := os.WriteFile(filepath.Join(to, "agent.json"), []byte(`{"kind": "later"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeHome(to, provision.Image{Home: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "another version") {
		t.Errorf("of an unknown kind: %v", err)
	}
}

// TestTrust: the file of authorities is the image's, or else the caller's, with the proxy's.
func TestTrust(t *testing.T) {
	dir := t.TempDir()
	roots, out := filepath.Join(dir, "roots"), filepath.Join(dir, "out")
	for name, text := range map[string]string{"ca.pem": "of the proxy\n", "roots": "of the host\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Trust(dir, roots, out); err != nil {
		t.Fatal(err)
	}
	want := "of the host\n"
	for _, path := range slices.Backward(provision.SystemBundles()) {
		if data, err := os.ReadFile(path); err == nil {
			want = string(data)
		}
	}
	if got, err := os.ReadFile(out); err != nil || !strings.HasSuffix(string(got), "of the proxy\n") || !strings.HasPrefix(string(got), want) {
		t.Errorf("%v, %d bytes: want %d bytes and the proxy's", err, len(got), len(want))
	}
	if err := Trust(t.TempDir(), roots, out); err == nil {
		t.Error("no error without the proxy's certificate")
	}
}
