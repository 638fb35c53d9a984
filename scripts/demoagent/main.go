// Command demoagent is the agent of the demo and a network probe for tests: a
// small static client that reports what it can reach. It prints a line for each
// attempt:
//
//	ok|refused|unreachable  WHAT  DETAIL
//
// Refused means that the attempt was answered with a refusal, unreachable that
// it was not answered.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `usage: demoagent                            print the environment and run the demo's checks
       demoagent [FLAG...] get URL          print the status and the body of a page
       demoagent [FLAG...] dial HOST:PORT [TEXT]
                                            connect, send TEXT, print what is received
       demoagent [FLAG...] udp HOST:PORT [TEXT]
                                            send TEXT in a datagram, print the reply

Exit code: 0 on success (for the demo: all checks passed), 1 on failure, 2 for an
invalid command line.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options are the flags.
type options struct {
	// direct bypasses the proxy set in the environment.
	direct bool
	// timeout bounds each attempt.
	timeout time.Duration
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("demoagent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&o.direct, "direct", false, "do not use the proxy set in the environment")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, "timeout of an attempt")
	flags.Usage = func() {
		_, _ = io.WriteString(stderr, usage)
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	if flags.NArg() == 0 {
		return demo(ctx, o, stdout)
	}
	r, err := probe(ctx, o, flags.Args())
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "demoagent:", err)
		return 2
	}
	if err := r.print(stdout); err != nil || r.outcome != reached {
		return 1
	}
	return 0
}

// probe runs the command given by the arguments. It returns an error for an
// invalid command line only.
func probe(ctx context.Context, o options, args []string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	switch command := args[0]; {
	case command == "get" && len(args) == 2:
		return get(ctx, o, args[1]), nil
	case command == "dial" && (len(args) == 2 || len(args) == 3):
		return dial(ctx, args[1], firstOr(args[2:], "")), nil
	case command == "udp" && (len(args) == 2 || len(args) == 3):
		return udp(ctx, args[1], firstOr(args[2:], "probe")), nil
	default:
		return result{}, fmt.Errorf("unknown command %s with %d arguments (demoagent --help)", command, len(args)-1)
	}
}

func firstOr(args []string, fallback string) string {
	if len(args) == 0 {
		return fallback
	}
	return args[0]
}
