package shim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/proto"
)

// TestDelete: after a task was deleted, the shim answers containerd itself. While runsc has a
// record of the sandbox, or if anything is not as expected, gVisor's shim is executed.
func TestDelete(t *testing.T) {
	bin, root := t.TempDir(), t.TempDir()
	script := "#!/bin/sh\necho gvisor\n"
	if err := os.WriteFile(filepath.Join(bin, program), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "ns"), 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-namespace", "ns", "-address", "/run/c.sock", "-publish-binary", "/bin/c", "-id", "x", "-bundle", "/b", "delete"}
	state := fmt.Sprintf(`{"rootfs":%q,"options":{"root":%q}}`, filepath.Join(t.TempDir(), "absent"), root)
	run := func(t *testing.T, state string, args ...string) string {
		t.Helper()
		cmd := exec.Command(self, args...)
		cmd.Dir = t.TempDir()
		if state != "" {
			if err := os.WriteFile(filepath.Join(cmd.Dir, "state.json"), []byte(state), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), mainArgs + "=1"}
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("%q: %v", args, err)
		}
		return string(out)
	}
	var resp task.DeleteResponse
	out := run(t, state, args...)
	if err := proto.Unmarshal([]byte(out), &resp); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	if at := resp.GetExitedAt().AsTime(); resp.GetExitStatus() != 137 || resp.GetPid() != 0 || time.Since(at).Abs() > time.Minute {
		t.Errorf("response %v", &resp)
	}
	for name, c := range map[string]struct {
		state string
		args  []string
	}{
		"start":          {state, append(args[:len(args)-1:len(args)-1], "start")},
		"no id":          {state, []string{"-namespace", "ns", "delete"}},
		"unknown flag":   {state, append([]string{"-namespace", "ns", "-new", "x"}, args[2:]...)},
		"no state":       {"", args},
		"broken state":   {state[:len(state)-2], args},
		"no root":        {`{"rootfs":"/x","options":{}}`, args},
		"another format": {`[]`, args},
	} {
		if got := run(t, c.state, c.args...); got != "gvisor\n" {
			t.Errorf("%s: %q, want gVisor's shim", name, got)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "ns", "x_sandbox:x.state"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := run(t, state, args...); got != "gvisor\n" {
		t.Errorf("with a record of the sandbox: %q, want gVisor's shim", got)
	}
}
