package bottle

import (
	"os/exec"
	"testing"
)

// ctr runs containerd's own client against the test host's containerd.
func ctr(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ctr", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ctr %v: %v: %s", args, err, out)
	}
	return string(out)
}

// foreignContainer is a container that bottle did not create.
type foreignContainer string

func makeContainer(t *testing.T, name string) foreignContainer {
	t.Helper()
	ctr(t, "containers", "create", "docker.io/library/claude-bottle:latest", name, "true")
	t.Cleanup(func() { ctr(t, "containers", "rm", name) })
	return foreignContainer(name)
}

func (s foreignContainer) mustExist(t *testing.T) {
	t.Helper()
	ctr(t, "containers", "info", string(s))
}
