package scratch

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// ownerEnv makes the test program create a scratch directory and wait.
const ownerEnv = "SCRATCH_TEST_PARENT"

func TestMain(m *testing.M) {
	if parent := os.Getenv(ownerEnv); parent != "" {
		d, err := New(context.Background(), parent)
		if err != nil {
			panic(err)
		}
		_, _ = os.Stdout.WriteString(d.Path + "\n")
		select {}
	}
	os.Exit(m.Run())
}

// TestAbandoned: a directory is abandoned when its process was killed, and not before.
func TestAbandoned(t *testing.T) {
	parent := filepath.Join(t.TempDir(), "made", "by", "New")
	mine, err := New(t.Context(), parent)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), ownerEnv+"="+parent)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 4096)
	n, err := out.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	theirs := string(line[:n-1])
	if err := os.WriteFile(filepath.Join(theirs, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(want ...string) {
		t.Helper()
		if got, err := Abandoned(t.Context(), parent, 0); !slices.Equal(got, want) || err != nil {
			t.Errorf("Abandoned = %q, %v; want %q", got, err, want)
		}
	}
	check()
	if err := Remove(theirs); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(theirs); err != nil {
		t.Errorf("a directory in use was removed: %v", err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	check(theirs)
	for range 2 {
		if err := Remove(theirs); err != nil {
			t.Error(err)
		}
	}
	if err := mine.Close(); err != nil {
		t.Error(err)
	}
	check()
	if left, err := os.ReadDir(parent); len(left) > 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}
