package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestVerdicts tests the built-in proxy against the table.
func TestVerdicts(t *testing.T) {
	if n := len(table("127.7.7.7")); n < 180 {
		t.Errorf("the table has %d requests, want at least 180", n)
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), nil, &out, &errs); code != 0 {
		t.Errorf("exit %d: %s\n%s", code, &errs, &out)
	}
}

// TestWrite checks that the files for a real pipelock are written.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--write", dir}, &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	for _, name := range []string{"pipelock.yaml", "hosts"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(data) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
