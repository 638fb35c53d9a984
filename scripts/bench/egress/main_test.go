package main

import (
	"fmt"
	"os"
	"slices"
	"testing"
)

// TestMain also runs the servers, which the benchmark starts as child processes.
func TestMain(m *testing.M) {
	if slices.Contains(os.Args, "--role") {
		if err := run(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestBench runs the benchmark. It lowers the minimum throughput, because the
// machine may be busy.
func TestBench(t *testing.T) {
	if err := run([]string{"--ratio", "0.5"}); err != nil {
		t.Error(err)
	}
}
