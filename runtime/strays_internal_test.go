package runtime

import (
	"bufio"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestOwner: a process belongs to the container that its command line names, whether it is the shim
// under one of its names or what the shim runs.
func TestOwner(t *testing.T) {
	const id = "claude-bottle-test-owner"
	c := &Client{cfg: Config{RunDir: t.TempDir(), StateDir: "/var/lib/x", Namespace: "ns", Address: "/run/x/c.sock", Shim: "/usr/bin/bottle"}}
	asShim := []string{"-namespace", "ns", "-address", "/run/x/c.sock", "-id", id, "start"}
	root := filepath.Join(c.Dir(id), "runsc", "ns")
	for name, p := range map[string]struct {
		args   []string
		id     string
		helper bool
	}{
		"gVisor's shim":               {append([]string{"/bin/containerd-shim-runsc-v1"}, asShim...), id, true},
		"bottle as the shim":          {append([]string{"/usr/bin/bottle"}, asShim...), id, true},
		"the small program as it":     {append([]string{c.runscProgram(id)}, asShim...), id, true},
		"another program":             {append([]string{"/usr/bin/other"}, asShim...), "", false},
		"in another namespace":        {[]string{c.runscProgram(id), "-namespace", "other", "-address", "/run/x/c.sock", "-id", id}, "", false},
		"of another containerd":       {[]string{c.runscProgram(id), "-namespace", "ns", "-address", "/run/y/c.sock", "-id", id}, "", false},
		"a call":                      {[]string{c.runscProgram(id), "--root=" + root, "wait", id}, id, false},
		"runsc":                       {[]string{"runsc", "--root", root, "wait", id}, id, false},
		"runsc with another root":     {[]string{"runsc", "--root", "/run/runsc/ns", "wait", id}, "", false},
		"removal":                     {[]string{"runsc", "--root=" + root, "delete", id}, id, true},
		"runc":                        {[]string{"/sbin/runc", "--root", filepath.Join(c.Dir(id), "runc", "ns"), "start", id}, id, false},
		"what an agent may call runc": {[]string{"runc", "--root", filepath.Join(c.Dir("../x"), "runc", "ns"), "start", id}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sh")
			cmd.Args = append([]string{p.args[0], "-c", "echo; read -r x"}, p.args...)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = in.Close()
				_ = cmd.Wait() // the exit code does not matter
			}()
			// Its command line can be read only some time after its program was executed.
			if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if id, helper := c.ownerOf(cmd.Process.Pid); id != p.id || helper != p.helper {
				t.Errorf("%q: owner %q, helper %t; want %q, %t", p.args, id, helper, p.id, p.helper)
			}
		})
	}
}
