package main

import (
	"strings"
	"testing"
)

// TestListsHaveJSON: every command that prints a list or the state of something prints it as
// JSON, too. bottle inspect prints nothing else.
func TestListsHaveJSON(t *testing.T) {
	root := (&app{}).rootCommand()
	for _, path := range []string{
		"cleanup", "config show", "doctor", "egress", "images", "list", "login", "policy show", "pool list", "presets", "run", "setup", "start", "stats", "trust", "version",
	} {
		cmd, rest, err := root.Find(strings.Fields(path))
		if err != nil || len(rest) > 0 || cmd.Flags().Lookup("json") == nil {
			t.Errorf("bottle %s has no --json: %v", path, err)
		}
	}
}
