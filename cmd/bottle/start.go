package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/plan"
)

func (a *app) startCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "start NAME [flags] [-- ARGS...]",
		Short: "Run the agent of a stopped bottle again, in its workspace",
		Long:  textStartLong,
		Args:  nameAndArgs(textNoName, hintStart),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := a.withEngine(func(e *bottle.Engine) (err error) {
				f.spec.Resume, err = a.stoppedWork(e, args[0])
				return err
			})
			if err != nil {
				return err
			}
			f.spec.Agent, f.spec.Args, f.spec.ManifestPath = f.spec.Resume.Agent, args[1:], a.manifest
			if f.spec.ManifestPath == "" {
				f.spec.ManifestPath = f.spec.Resume.Manifest
			}
			return a.runAgent(cmd, f)
		},
	}
	f.register(a, cmd)
	return cmd
}

// stoppedWork returns the workspace of a bottle that is not running.
func (a *app) stoppedWork(e *bottle.Engine, name string) (*plan.Resume, error) {
	name, err := a.resolve(e, name)
	if err != nil {
		return nil, err
	}
	k, err := e.Work().Workspace(a.ctx, name)
	switch {
	case errors.Is(err, agentwork.ErrNone):
		return nil, withHint(fmt.Errorf(textNoWorkspace, shownName(name)), hintNoWorkspace)
	case err != nil:
		return nil, err
	}
	running, err := e.Running(a.ctx, name)
	if err == nil && running {
		err = withHint(fmt.Errorf(textRmRunning, shownName(name)), hintStartRunning, shownName(name))
	}
	if err == nil && e.IsSuspended(name) {
		err = withHint(fmt.Errorf(textRmSuspended, shownName(name)), hintStartSuspend, shownName(name), shownName(name))
	}
	if err != nil {
		return nil, err
	}
	return &plan.Resume{Name: name, Agent: k.Agent, Manifest: k.Manifest, Dir: k.Source, Target: k.Target, Runtime: k.Runtime, Size: k.Size}, nil
}
