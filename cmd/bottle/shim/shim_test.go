package shim

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// mainArgs makes TestMain print its arguments, as a program that got past the
// initialisation of this package.
const mainArgs = "SHIM_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(mainArgs) != "" {
		fmt.Println("main", os.Args[1:])
		return
	}
	os.Exit(m.Run())
}

// TestInit: a shim call executes gVisor's shim, with the same arguments and without the
// address for events. Other calls, and those with sudo, reach the main function.
func TestInit(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\necho \"shim $*, ${TTRPC_ADDRESS-none}, $OTHER\"\n"
	if err := os.WriteFile(filepath.Join(dir, program), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := "PATH=" + dir + ":" + os.Getenv("PATH")
	for _, c := range []struct {
		args, env []string
		want      string
	}{
		{[]string{"-namespace", "n", "-id", "x", "start"}, []string{path}, "shim -namespace n -id x start, none, kept"},
		{[]string{"-info"}, []string{path}, "shim -info, none, kept"},
		{[]string{"-info"}, []string{path, "SUDO_UID=1000"}, "main [-info]"},
		{[]string{"-info"}, []string{"PATH=/nonexistent"}, "main [-info]"},
		{[]string{"run", "-info"}, []string{path}, "main [run -info]"},
		{nil, []string{path}, "main []"},
	} {
		cmd := exec.Command(self, c.args...)
		cmd.Env = slices.Concat(c.env, []string{mainArgs + "=1", "TTRPC_ADDRESS=/run/x", "OTHER=kept"})
		out, err := cmd.Output()
		if got := strings.TrimSpace(string(out)); err != nil || got != c.want {
			t.Errorf("%q with %q: %q, %v; want %q", c.args, c.env, got, err, c.want)
		}
	}
}
