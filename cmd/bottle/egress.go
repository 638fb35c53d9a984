package main

import (
	"context"
	"errors"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/egress"
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
				name, err := a.resolve(e, args[0])
				if err != nil {
					return err
				}
				return a.showEgress(e.Proxies().Log(a.ctx, name, start, follow), denied, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	cmd.Flags().BoolVar(&denied, "denied", false, "show only refused requests")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "continue with new entries until the bottle is removed")
	cmd.Flags().StringVar(&from, "since", "", "show only entries since then: 10m, or 2026-01-02T15:04:05Z")
	return cmd
}

// proxyLogCommand is the logging program of a proxy's shim.
func (a *app) proxyLogCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "proxy-log FILE",
		Short:   "Write an egress proxy's log",
		Hidden:  true,
		Args:    cobra.ExactArgs(1),
		PreRunE: refuseInternal,
		RunE:    func(_ *cobra.Command, args []string) error { return egress.RunLogger(args[0]) },
	}
}

// proxyCommand runs the built-in proxy, as a bottle's proxy task.
func (a *app) proxyCommand() *cobra.Command {
	var config, listen string
	cmd := &cobra.Command{
		Use:     "proxy --config FILE",
		Short:   "Run the built-in egress proxy",
		Hidden:  true,
		Args:    noArgs,
		PreRunE: refuseInternal,
		RunE: func(*cobra.Command, []string) error {
			return egress.Run(context.WithoutCancel(a.ctx), config, listen, a.stdout, a.stderr)
		},
	}
	cmd.Flags().StringVar(&config, "config", "/config/proxy.json", "the proxy's configuration")
	cmd.Flags().StringVar(&listen, "listen", "", "where it listens, instead of the configuration's address")
	return cmd
}
