// Command bottle runs an AI coding agent in a sandbox that reaches nothing but
// what its manifest allows.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(program()) }

func program() int {
	// Inside a bottle this program is PID 1, and the helper that every session
	// begins with: that part must start fast and needs none of the rest.
	if code, ok := runGuest(os.Args[1:]); ok {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}
