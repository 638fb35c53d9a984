// Command bottle runs an AI coding agent in a sandbox that reaches nothing but
// what its manifest allows.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/bot-bottle/bottle/cmd/bottle/guest"
)

func main() { os.Exit(program()) }

func program() int {
	// In a sandbox, this program replaces the guest program if none is embedded.
	if code, ok := guest.Run(os.Args[1:]); ok {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}
