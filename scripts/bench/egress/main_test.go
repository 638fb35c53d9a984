package main

import (
	"fmt"
	"os"
	"slices"
	"testing"
)

// TestMain is also what the program's own children are.
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

// TestAll is the measurement, once: the bounds of memory, of tunnels and of the
// stream hold; that of throughput is for a quiet machine.
func TestAll(t *testing.T) {
	if err := run([]string{"--ratio", "0.5"}); err != nil {
		t.Error(err)
	}
}
