package main

import (
	"context"
	"errors"
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
		Short: "Show a bottle's egress log: requests, verdicts and reasons",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return withHint(errors.New(textOneBottle), hintEgress)
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
	cmd.Flags().BoolVar(&denied, "denied", false, "show only refused requests")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "continue with new entries until the bottle is removed")
	cmd.Flags().StringVar(&from, "since", "", "show only entries since then: 10m, or 2026-01-02T15:04:05Z")
	return cmd
}

// Descriptors that containerd's shim passes to a logging program: the task's
// standard output and error, and one to close when it is ready to read.
const (
	logStdout = 3
	logStderr = 4
	logReady  = 5
)

// proxyLogCommand is the logging program of a proxy's shim.
func (a *app) proxyLogCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "proxy-log FILE",
		Short:  "Write an egress proxy's log",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			// The shim sends SIGTERM when the task is deleted. What the task wrote
			// before must still be read.
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

// proxyCommand runs the built-in proxy, as a bottle's proxy task.
func (a *app) proxyCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:    "proxy --config FILE",
		Short:  "Run the built-in egress proxy",
		Hidden: true,
		Args:   noArgs,
		RunE: func(*cobra.Command, []string) error {
			// When the log's reader is gone, a write to standard output ends the
			// process (os/signal, "SIGPIPE"): no request passes unlogged, and the
			// watcher restarts the proxy with a new log.
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			// SIGHUP reloads the policy here and must not end the process.
			ctx, stop := signal.NotifyContext(context.WithoutCancel(a.ctx), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return bottle.RunProxy(ctx, config, hup, a.stdout, a.stderr)
		},
	}
	cmd.Flags().StringVar(&config, "config", "/config/proxy.json", "the proxy's configuration")
	return cmd
}
