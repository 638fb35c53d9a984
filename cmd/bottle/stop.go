package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

// defaultStopTimeout is docker's.
const defaultStopTimeout = 10

func (a *app) stopCommand() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:   "stop NAME...",
		Short: "Stop bottles and keep their files",
		Long:  textStopLong,
		Args:  oneOrMoreNames,
		RunE: func(_ *cobra.Command, args []string) error {
			if seconds < 0 {
				return withHint(fmt.Errorf(textStopTimeout, seconds), hintStopTimeout)
			}
			return a.eachBottle(args, func(e *bottle.Engine, name string) error {
				done := a.busy(textBusyStop, shownName(name))
				killed, err := e.Stop(a.ctx, name, time.Duration(seconds)*time.Second)
				done()
				if err != nil {
					return err
				}
				if killed && seconds > 0 {
					a.note(textStopKilled, shownName(name), seconds)
				}
				_, err = fmt.Fprintln(a.stdout, shownName(name))
				return err
			})
		},
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", defaultStopTimeout, "seconds before the agent is killed")
	return cmd
}

// oneOrMoreNames accepts one or more bottle names.
func oneOrMoreNames(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return withHint(errors.New(textNoName), hintName, cmd.CommandPath())
	}
	return nil
}

// oneName accepts exactly one bottle name.
func oneName(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return withHint(fmt.Errorf(textUnexpectedArg, args[1]), hintName, cmd.CommandPath())
	}
	return oneOrMoreNames(cmd, args)
}

// eachBottle calls fn for each bottle and continues after errors.
func (a *app) eachBottle(names []string, fn func(*bottle.Engine, string) error) error {
	defer catchBrokenPipes()()
	return a.withEngine(func(e *bottle.Engine) error {
		var errs []error
		for _, name := range names {
			found, err := a.resolve(e, name)
			if err == nil {
				err = fn(e, found)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}
