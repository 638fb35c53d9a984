// Command bottle runs an AI coding agent in a sandbox that reaches only what its
// manifest allows.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/bot-bottle/bottle/cmd/bottle/fastexec"
	"github.com/bot-bottle/bottle/cmd/bottle/guest"
	"github.com/bot-bottle/bottle/cmd/bottle/shim"
)

func main() { os.Exit(program()) }

func program() int {
	// In a sandbox, this program replaces the guest program if none is embedded.
	if code, ok := guest.Run(os.Args[1:]); ok {
		return code
	}
	if shim.IsCall(os.Args[1:]) { // and package shim has not acted on it
		if err := shimAllowed(); err != nil {
			a := &app{ctx: context.Background(), stderr: os.Stderr, command: "shim"}
			_, _ = fmt.Fprintln(os.Stderr, "bottle:", a.auditRefusals(err))
			return exitBottle
		}
		_, _ = fmt.Fprintln(os.Stderr, "bottle:", shim.Exec(os.Args[1:]))
		return exitBottle
	}
	delayCollection()
	ctx := context.Background()
	if fastexec.Begun() == nil { // otherwise signals go to the session
		var stop func()
		ctx, stop = notifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
	}
	return run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
}

// interruption is the cause of a context that a signal has cancelled.
type interruption syscall.Signal

func (i interruption) Error() string { return "interrupted: " + syscall.Signal(i).String() }

// Is makes an error that wraps the cause a cancellation, as one that wraps the
// context's own error is.
func (i interruption) Is(target error) bool { return target == context.Canceled }

// notifyContext is signal.NotifyContext with an interruption as the cause.
func notifyContext(parent context.Context, signals ...os.Signal) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	received := make(chan os.Signal, 1)
	signal.Notify(received, signals...)
	go func() {
		select {
		case s := <-received:
			cancel(interruption(s.(syscall.Signal)))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(received); cancel(nil) }
}

// catchBrokenPipes makes a write to a closed pipe an error until stop is called. By
// default it would end the program (os/signal, "SIGPIPE"), and the bottle would be left.
func catchBrokenPipes() (stop func()) {
	ignored := make(chan os.Signal, 1)
	signal.Notify(ignored, syscall.SIGPIPE)
	return func() { signal.Stop(ignored) }
}

// interruptedCode is the exit code after a cancellation of ctx.
func interruptedCode(ctx context.Context) int {
	var i interruption
	if errors.As(context.Cause(ctx), &i) {
		return signalCode(syscall.Signal(i))
	}
	return signalCode(syscall.SIGINT)
}
