// Command demoagent is the agent of the demo and the probe of the tests: a small
// static client that says what it can and cannot reach. Each attempt is a line
//
//	ok|refused|unreachable  WHAT  DETAIL
//
// Refused means that something answered and said no, unreachable that nothing
// did.
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

const usage = `usage: demoagent                            what this place is, and what it can reach
       demoagent [FLAG...] get URL          the status and the body of a page
       demoagent [FLAG...] dial HOST:PORT [TEXT]
                                            a TCP connection, and what comes over it
       demoagent [FLAG...] udp HOST:PORT [TEXT]
                                            a datagram, and the answer to it

Exit code: 0 if it went well (for the demo: as the walls say), 1 if not, 2 for a
bad command line.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// options are the flags.
type options struct {
	// direct goes past the proxy of the environment.
	direct bool
	// timeout bounds each attempt.
	timeout time.Duration
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("demoagent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.BoolVar(&o.direct, "direct", false, "get without the proxy of the environment")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long one attempt may take")
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

// probe makes the one attempt that the arguments ask for; an error is of the
// command line.
func probe(ctx context.Context, o options, args []string) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	switch command := args[0]; {
	case command == "get" && len(args) == 2:
		return get(ctx, o, args[1]), nil
	case command == "dial" && (len(args) == 2 || len(args) == 3):
		return dial(ctx, args[1], optional(args[2:], "")), nil
	case command == "udp" && (len(args) == 2 || len(args) == 3):
		return udp(ctx, args[1], optional(args[2:], "probe")), nil
	default:
		return result{}, fmt.Errorf("%s with %d arguments is no command (demoagent --help)", command, len(args)-1)
	}
}

func optional(args []string, otherwise string) string {
	if len(args) == 0 {
		return otherwise
	}
	return args[0]
}
