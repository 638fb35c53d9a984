// Command world is everything that the lab's host can reach: the web, git and
// DNS servers, a mock of the Messages API and the victims of the tests. The lab
// (scripts/lab) runs it as root in a network namespace that holds the addresses
// and has no way out. It must never run anywhere else: some of the addresses
// belong to others in the real network.
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

const usage = `The test hosts of the lab.

usage: world COMMAND

  addresses                     print the addresses to put on a link, ADDR/PREFIX each
  ca --state DIR                make DIR/ca.pem and DIR/ca.key, if they are not there
  serve --state DIR [--ca DIR] [--sshd DIR]
                                serve until SIGTERM; DIR/ready is there when all
                                servers listen; the log is DIR/world.log
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errUsage marks a command line that world cannot read.
var errUsage = errors.New("world help shows the usage")

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
		return fmt.Errorf("no command: %w", errUsage)
	}
	switch name, rest := args[0], args[1:]; name {
	case "help", "-h", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	case "addresses":
		return printAddresses(stdout)
	case "ca":
		state, _, _, err := parseFlags(rest)
		if err != nil {
			return err
		}
		_, err = loadAuthority(state)
		return err
	case "serve":
		state, ca, sshd, err := parseFlags(rest)
		if err != nil {
			return err
		}
		return serve(ctx, state, ca, sshd, stderr)
	default:
		return fmt.Errorf("unknown command %s: %w", name, errUsage)
	}
}

// parseFlags reads --state, --ca, which is the state folder if not given, and
// --sshd.
func parseFlags(args []string) (state, ca, sshd string, err error) {
	flags := pflag.NewFlagSet("world", pflag.ContinueOnError)
	flags.Usage = func() {}
	flags.StringVar(&state, "state", "", "folder of the world's files")
	flags.StringVar(&ca, "ca", "", "folder of ca.pem and ca.key")
	flags.StringVar(&sshd, "sshd", "", "folder that openssh-server is unpacked in; empty: no ssh")
	if err := flags.Parse(args); err != nil {
		return "", "", "", fmt.Errorf("%w: %w", err, errUsage)
	}
	if state == "" || flags.NArg() > 0 {
		return "", "", "", fmt.Errorf("it takes --state DIR and no arguments: %w", errUsage)
	}
	if ca == "" {
		ca = state
	}
	return state, ca, sshd, nil
}

func printAddresses(w io.Writer) error {
	for _, addr := range addresses() {
		if _, err := fmt.Fprintf(w, "%s/%d\n", addr, addr.BitLen()); err != nil {
			return err
		}
	}
	return nil
}
