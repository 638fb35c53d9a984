package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"
)

// TestInterruptedCode: the exit code names the signal that interrupted bottle, as
// docker's does.
func TestInterruptedCode(t *testing.T) {
	for s, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129} {
		ctx, stop := notifyContext(t.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		if err := syscall.Kill(syscall.Getpid(), s); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		if got := interruptedCode(ctx); got != want {
			t.Errorf("%s: exit code %d, want %d", s, got, want)
		}
		if err := fmt.Errorf("pull: %w", context.Cause(ctx)); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v is not a cancellation", s, err)
		}
		// A question that nobody answers.
		stdin, unanswered := io.Pipe()
		a, _, _ := newApp()
		a.ctx, a.stdin = ctx, stdin
		if err := a.confirm(textStart); !errors.Is(err, exitError(want)) {
			t.Errorf("%s at a question: %v, want exit code %d", s, err, want)
		}
		_ = unanswered.Close()
		stop()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := interruptedCode(ctx); got != 130 {
		t.Errorf("cancelled without a signal: exit code %d", got)
	}
}
