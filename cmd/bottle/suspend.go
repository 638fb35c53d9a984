package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

func (a *app) suspendCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "suspend NAME...",
		Short: "Suspend bottles to free what they use, until bottle resume",
		Long:  textSuspendLong,
		Args:  oneOrMoreNames,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.eachBottle(args, func(e *bottle.Engine, name string) error {
				done := a.busy(textBusySuspend, shownName(name))
				size, err := e.Suspend(a.ctx, name)
				done()
				if err != nil {
					return err
				}
				a.note(textSuspended, shownName(name), size>>20, shownName(name))
				_, err = fmt.Fprintln(a.stdout, shownName(name))
				return err
			})
		},
	}
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME",
		Short: "Continue a suspended bottle",
		Long:  textResumeLong,
		Args:  oneName,
		RunE: func(_ *cobra.Command, args []string) error {
			if !isHelper() {
				return a.resumeByHelper()
			}
			return a.withEngine(func(e *bottle.Engine) error {
				name, err := a.resolve(e, args[0])
				if err != nil {
					return err
				}
				done := a.busy(textBusyResume, shownName(name))
				b, err := e.Resume(a.ctx, name)
				done()
				if err != nil {
					return err
				}
				if lost := e.LostBySuspension(name); lost != "" {
					a.note(textLost, shownName(name), lost)
				}
				return a.watchAsHelper(e, []*bottle.Bottle{b})
			})
		},
	}
}

// resumeByHelper starts the process that resumes a bottle and then watches it, as bottle run
// -d does.
func (a *app) resumeByHelper() error {
	report, err := a.startHelper()
	if err != nil {
		return err
	}
	a.note(textResumed, shownName(report.Name), shownName(report.Name))
	_, err = fmt.Fprintln(a.stdout, shownName(report.Name))
	return err
}

// watchAsHelper reports bottles and stays until their sessions have ended. A bottle that is
// being watched already, because a suspension was interrupted, is left to its watcher.
func (a *app) watchAsHelper(e *bottle.Engine, bottles []*bottle.Bottle) error {
	report := launched{Name: bottles[0].Name}
	var mine []*bottle.Bottle
	for _, b := range bottles {
		report.Names = append(report.Names, b.Name)
		if e.Sessions().Watcher(b.Name) != 0 {
			continue
		}
		if err := e.Sessions().BeWatcher(b.Name); err != nil {
			return err
		}
		mine = append(mine, b)
	}
	if err := reportLaunch(report); err != nil {
		return err
	}
	defer releaseWhenIdle()()
	done := make(chan struct{})
	for _, b := range mine {
		go func() {
			defer func() { done <- struct{}{} }()
			defer e.Sessions().EndWatch(b.Name)
			a.watchDetached(e, b)
		}()
	}
	for range mine {
		<-done
	}
	return nil
}

// reportLaunch leaves the caller's terminal and tells the command that has started this
// helper what runs.
func reportLaunch(report launched) error {
	fd, err := strconv.Atoi(os.Getenv(helperVariable))
	if err != nil {
		return fmt.Errorf("invalid %s: %w", helperVariable, err)
	}
	out := os.NewFile(uintptr(fd), "report")
	if err := leave(); err != nil {
		return err
	}
	if err := json.NewEncoder(out).Encode(report); err != nil {
		return fmt.Errorf("report the launch: %w", err)
	}
	return out.Close()
}

// suspended reports, after an attachment has ended, whether the reason is that the bottle
// was suspended.
func (a *app) suspended(e *bottle.Engine, name string) bool {
	if context.Cause(a.ctx) != nil || !e.IsSuspended(name) {
		return false
	}
	a.note(textSuspendedAway, shownName(name), shownName(name))
	return true
}
