package bottle

import (
	"os/exec"
	"testing"
)

// ctr runs containerd's own client on the test host's containerd.
func ctr(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("ctr", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("ctr %v: %v: %s", args, err, out)
	}
	return string(out)
}

// stranger is a container that is not bottle's.
type stranger string

func makeContainer(t *testing.T, name string) stranger {
	t.Helper()
	ctr(t, "containers", "create", "docker.io/library/claude-bottle:latest", name, "true")
	t.Cleanup(func() { ctr(t, "containers", "rm", name) })
	return stranger(name)
}

func (s stranger) mustExist(t *testing.T) {
	t.Helper()
	ctr(t, "containers", "info", string(s))
}
