package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) egressCommand() *cobra.Command {
	var asJSON, denied, follow bool
	var from string
	cmd := &cobra.Command{
		Use:   "egress NAME",
		Short: "Show what a bottle's agent has requested, and what was refused",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usage(textEgressArgs)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			start, err := since(from, time.Now())
			if err != nil {
				return err
			}
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := e.Resolve(a.ctx, args[0])
				if err != nil {
					return err
				}
				return a.showEgress(e.EgressLog(a.ctx, name, start, follow), denied, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	cmd.Flags().BoolVar(&denied, "denied", false, "only what was refused")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes, until the bottle is gone")
	cmd.Flags().StringVar(&from, "since", "", "only what came since then: 10m, or 2026-01-02T15:04:05Z")
	return cmd
}

// The descriptors that containerd's shim gives a logging program: the task's
// standard output and error, and what is closed to say that it reads.
const (
	logStdout = 3
	logStderr = 4
	logReady  = 5
)

// proxyLogCommand writes a proxy's log, started by the proxy's shim.
func (a *app) proxyLogCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "proxy-log FILE",
		Short:  "Write an egress proxy's log",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			// The shim asks for the end when the task is deleted: what the task
			// wrote before is still to be read then.
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, syscall.SIGTERM)
			defer signal.Stop(stop)
			out, errs := os.NewFile(logStdout, "stdout"), os.NewFile(logStderr, "stderr")
			if err := os.NewFile(logReady, "ready").Close(); err != nil {
				return err
			}
			return bottle.KeepProxyLog(args[0], stop, out, errs)
		},
	}
}

// proxyCommand is the built-in proxy, run as a bottle's proxy task.
func (a *app) proxyCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:    "proxy --config FILE",
		Short:  "Run the built-in egress proxy",
		Hidden: true,
		Args:   noArgs,
		RunE: func(*cobra.Command, []string) error {
			// A log that nobody reads any more ends the process, as Go has it for a
			// write to a closed standard output: what is not logged does not happen,
			// and who watches starts the proxy again with a new log.
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			// SIGHUP, which ends every other command, is no reason either.
			ctx, stop := signal.NotifyContext(context.WithoutCancel(a.ctx), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return bottle.RunProxy(ctx, config, hup, a.stdout, a.stderr)
		},
	}
	cmd.Flags().StringVar(&config, "config", "/config/proxy.json", "the proxy's configuration")
	return cmd
}
