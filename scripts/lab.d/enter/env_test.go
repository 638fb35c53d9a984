package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

func TestEnvironment(t *testing.T) {
	dir := t.TempDir()
	file := "PATH+=/lab/sbin:/lab/bin\nLAB_CA=/lab/ca.pem\n-HTTPS_PROXY\nA=b=c\n"
	if err := os.WriteFile(filepath.Join(dir, "env"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := environment(dir, []string{
		"PATH=" + filepath.Join(dir, "bin") + ":/usr/bin:/lab/bin:/bin", "HTTPS_PROXY=x", "A=old", "KEEP=1",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"KEEP=1", "PATH=/lab/sbin:/lab/bin:/usr/bin:/bin", "LAB_CA=/lab/ca.pem", "A=b=c"}
	if !slices.Equal(got, want) {
		t.Errorf("environment:\n got %q\nwant %q", got, want)
	}
}

func TestEnvironmentWithoutALab(t *testing.T) {
	if _, err := environment(t.TempDir(), nil); !errors.Is(err, errNotUp) {
		t.Errorf("got %v, want %v", err, errNotUp)
	}
}

func TestJoinRejectsAReusedProcessID(t *testing.T) {
	dir := t.TempDir()
	// This process exists, but did not start at tick 1.
	self := strconv.Itoa(os.Getpid())
	if start, err := startTime(self); err != nil || start == "1" {
		t.Fatalf("start time of process %s: %q, %v", self, start, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "init"), []byte(self+" 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := join(dir); !errors.Is(err, errNotUp) {
		t.Errorf("join: got %v, want %v", err, errNotUp)
	}
}
