// Command world simulates everything outside the lab's host: web, git, ssh and
// DNS servers, a mock of the Messages API, and the victims of the tests, which
// record unwanted traffic. The lab (scripts/lab) runs it as root in a network
// namespace that has the addresses and no other connection. It must never run
// anywhere else, because some of the addresses are in use on the Internet.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
)

const usage = `The simulated Internet of the lab.

usage: world COMMAND

  addresses                     print the required addresses, one ADDR/PREFIX per line
  ca --state DIR                create DIR/ca.pem and DIR/ca.key if they do not exist
  serve --state DIR [--ca DIR] [--git] [--sshd DIR]
                                serve until SIGTERM; create DIR/ready when all
                                servers listen; log to DIR/world.log
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errUsage marks an invalid command line.
var errUsage = errors.New("see world help")

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := command(ctx, args, stdout, stderr)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		_, _ = fmt.Fprintln(stderr, "world:", err)
		return 2
	default:
		_, _ = fmt.Fprintln(stderr, "world:", err)
		return 1
	}
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return fmt.Errorf("missing command: %w", errUsage)
	}
	switch name, rest := args[0], args[1:]; name {
	case "help", "-h", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	case "addresses":
		return printAddresses(stdout)
	case "ca":
		o, err := parseFlags(rest)
		if err != nil {
			return err
		}
		_, err = loadAuthority(o.state)
		return err
	case "serve":
		o, err := parseFlags(rest)
		if err != nil {
			return err
		}
		return serve(ctx, o, stderr)
	default:
		return fmt.Errorf("unknown command %s: %w", name, errUsage)
	}
}

// options are the flags.
type options struct {
	state string // directory for the world's files
	ca    string // directory of ca.pem and ca.key
	git   bool
	sshd  string // directory with the unpacked openssh-server; empty: no ssh servers
}

func parseFlags(args []string) (options, error) {
	var o options
	flags := pflag.NewFlagSet("world", pflag.ContinueOnError)
	flags.Usage = func() {}
	flags.StringVar(&o.state, "state", "", "directory for the world's files")
	flags.StringVar(&o.ca, "ca", "", "directory of ca.pem and ca.key (default: the state directory)")
	flags.BoolVar(&o.git, "git", false, "start the git servers")
	flags.StringVar(&o.sshd, "sshd", "", "start the ssh servers, with openssh-server unpacked in this directory")
	if err := flags.Parse(args); err != nil {
		return o, fmt.Errorf("%w: %w", err, errUsage)
	}
	if o.state == "" {
		return o, fmt.Errorf("missing --state: %w", errUsage)
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %s: %w", flags.Arg(0), errUsage)
	}
	if o.ca == "" {
		o.ca = o.state
	}
	return o, nil
}

func printAddresses(w io.Writer) error {
	for _, addr := range addresses() {
		if _, err := fmt.Fprintf(w, "%s/%d\n", addr, addr.BitLen()); err != nil {
			return err
		}
	}
	return nil
}
