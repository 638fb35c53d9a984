package main

import (
	"bytes"
	"net/netip"
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

// TestDifferences compares the built-in proxy as if it were pipelock: what is known
// to differ must be reported, and nothing else.
func TestDifferences(t *testing.T) {
	s := setup{upstream: netip.MustParseAddr("127.7.7.8")}
	stop, err := s.serve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	builtin, end, err := s.builtin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	requests := table(s.upstream.String())
	var out bytes.Buffer
	differ, err := compare(requests, builtin, builtin, expected, &out)
	if err != nil || differ != len(differences) {
		t.Errorf("%d differ, %v; want %d\n%s", differ, err, len(differences), &out)
	}
	for _, r := range requests {
		if d, ok := differences[r.name]; ok && d.got == kind(r.want) {
			t.Errorf("%s: the known difference is the expected verdict", r.name)
		}
	}
}

// TestWrite checks that the files for a real pipelock are written.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--write", dir}, &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	for _, name := range []string{"pipelock.yaml", "proxy.json", "hosts"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || len(data) == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}
