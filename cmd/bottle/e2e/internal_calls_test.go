package e2e

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestInternalCalls: a user of sudo cannot make the calls that containerd and its shims
// make, nor those of pods, which write files, serve a proxy and execute a shim as root. The
// control is the same for root.
func TestInternalCalls(t *testing.T) {
	u := newUser(t)
	ada := u.asSudoer()
	victim := filepath.Join(t.TempDir(), "victim")
	config := filepath.Join(u.dir, "proxy.json")
	u.write("proxy.json", `{"listen": "not an address"}`)
	u.write("agent.json", "{}")
	guest := t.TempDir()
	for name, c := range map[string]struct {
		args     []string
		refused  string
		executed func(result) bool
	}{
		"log": {[]string{"proxy-log", victim}, "bottle proxy-log is only for containerd's shims", func(result) bool {
			_, err := os.Stat(victim)
			return !errors.Is(err, fs.ErrNotExist)
		}},
		"proxy": {[]string{"proxy", "--config", config}, "bottle proxy is only for containerd's shims", func(r result) bool {
			return strings.Contains(r.stderr, "not an address")
		}},
		"files": {[]string{"k8s-files", "--from", u.dir, "--to", guest}, "bottle k8s-files is only for the pods of bottle export kubernetes", func(result) bool {
			_, err := os.Stat(filepath.Join(guest, "bottle"))
			return !errors.Is(err, fs.ErrNotExist)
		}},
		"walls": {[]string{"k8s-walls", "--proxy", "not an address"}, "bottle k8s-walls is only for the pods of bottle export kubernetes", func(r result) bool {
			return strings.Contains(r.stderr, "not an address")
		}},
		"shim": {[]string{"-info"}, "the shim is only for containerd", func(r result) bool { return strings.Contains(r.stdout, "io.containerd.runsc") }},
	} {
		t.Run(name, func(t *testing.T) {
			r := withStreams(t, ada.command(c.args...))
			if r.code != 125 || r.stderr != "bottle: "+c.refused+"\n" || c.executed(r) {
				t.Errorf("exit %d, %q\n%s", r.code, r.stdout, r.stderr)
			}
			if r := withStreams(t, u.command(c.args...)); !c.executed(r) {
				t.Errorf("control: exit %d, %q\n%s", r.code, r.stdout, r.stderr)
			}
		})
	}
}

// withStreams runs a command with the descriptors of a logging program.
func withStreams(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	for range 3 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	return finish(t, cmd)
}
