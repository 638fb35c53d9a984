package main

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

// TestPipeTimeout: a pipe that nobody writes to does not hang bottle.
func TestPipeTimeout(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &app{ctx: context.Background(), pipeTimeout: 20 * time.Millisecond}
	_, err := a.readPipe(caller.Current(), pipe)
	if want := "cannot read variables from " + pipe + ": its writer did not finish within 20ms"; err == nil || err.Error() != want || hint.Of(err) == "" {
		t.Errorf("got %v, want %q", err, want)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (&app{ctx: ctx}).readPipe(caller.Current(), pipe); err == nil || strings.Contains(err.Error(), "within") {
		t.Errorf("after an interruption: %v", err)
	}
	// The abandoned reads end with the process; here, with a writer.
	fd, err := unix.Open(pipe, unix.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Close(fd); err != nil {
		t.Error(err)
	}
}
