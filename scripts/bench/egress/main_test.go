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

// TestShort is the measurement in small: the bounds of memory and of tunnels hold,
// that of throughput is for a quiet machine.
func TestShort(t *testing.T) {
	if err := run([]string{"--bytes", "268435456", "--rounds", "1", "--tunnels", "500", "--ratio", "0.3"}); err != nil {
		t.Error(err)
	}
}
