package main

import (
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) egressCommand() *cobra.Command {
	var asJSON, denied bool
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
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := e.Resolve(a.ctx, args[0])
				if err != nil {
					return err
				}
				return a.showEgress(e.EgressLog(name), denied, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	cmd.Flags().BoolVar(&denied, "denied", false, "only what was refused")
	return cmd
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
			// A log that nobody reads any more is no reason to end.
			signal.Ignore(syscall.SIGPIPE)
			hup := make(chan os.Signal, 1)
			signal.Notify(hup, syscall.SIGHUP)
			defer signal.Stop(hup)
			return bottle.RunProxy(a.ctx, config, hup, a.stdout, a.stderr)
		},
	}
	cmd.Flags().StringVar(&config, "config", "/config/proxy.json", "the proxy's configuration")
	return cmd
}
