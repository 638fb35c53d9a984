package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/agentwork"
)

// Flags of run that need --cwd, and those that need --cwd or --cwd-image.
const (
	flagDiscard    = "discard"
	flagFetch      = "fetch"
	flagCwdIgnored = "cwd-ignored"
	flagCwdTarget  = "cwd-target"
	flagCwdForce   = "cwd-force"
)

// checkWorkFlags rejects flags without effect.
func checkWorkFlags(cmd *cobra.Command, f runFlags) error {
	for _, name := range []string{flagDiscard, flagFetch, flagCwdIgnored} {
		if cmd.Flags().Changed(name) && !f.spec.Cwd && f.spec.Resume == nil {
			return withHint(fmt.Errorf(textNeedsCwd, name), hintNeedsCwd)
		}
	}
	for _, name := range []string{flagCwdTarget, flagCwdForce} {
		if cmd.Flags().Changed(name) && !f.spec.Cwd && !f.spec.CwdImage {
			return withHint(fmt.Errorf(textNeedsCopy, name), hintNeedsCwd)
		}
	}
	return nil
}

// summaryTime bounds the count of an agent's work.
const summaryTime = 20 * time.Second

// summarize counts the work of a bottle at the end of its session. It returns nil if that
// is not possible, or if the user is waiting for the end.
func (a *app) summarize(e *bottle.Engine, name string) *agentwork.Summary {
	if a.ctx.Err() != nil {
		return nil
	}
	defer a.busy(textBusySummary, shownName(name))()
	o := a.workOptions(sizeFlag(agentwork.DefaultLimits.Bytes))
	o.Notice, o.Limits.Time = nil, summaryTime
	s, err := e.Work().Summarize(a.ctx, name, o)
	if err != nil || e.Work().RecordSummary(a.ctx, name, s) != nil {
		return nil
	}
	return &s
}

// beginEnd counts the work of a bottle while it still exists, which is faster than later.
func (a *app) beginEnd(e *bottle.Engine, name string, f runFlags) *agentwork.Summary {
	if f.discard {
		if err := e.Work().Abandon(name); err != nil {
			a.printError(err) // it is removed later
		}
		return nil
	}
	defer e.Work().Flush(name)()
	if k, err := e.Work().Workspace(a.ctx, name); err != nil || !k.Changed {
		return nil
	}
	return a.summarize(e, name)
}

// endWork reports the work of a bottle that was removed, and fetches, keeps or removes it
// as the user wants. If the agent has changed nothing, it is removed.
func (a *app) endWork(e *bottle.Engine, name string, sum *agentwork.Summary, f runFlags) error {
	ctx := context.WithoutCancel(a.ctx)
	k, err := e.Work().Workspace(ctx, name)
	switch {
	case errors.Is(err, agentwork.ErrNone):
		return nil
	case err != nil:
		return err
	case f.discard || !k.Changed:
		return e.Work().Discard(ctx, name)
	}
	if sum == nil {
		sum = a.summarize(e, name)
	}
	a.note(textWork, name, summaryText(sum, k.Used, k.Unfetched))
	switch a.chooseEnd(k, f) {
	case endFetch:
		err = a.fetchWork(e, name, "", a.workOptions(sizeFlag(agentwork.DefaultLimits.Bytes)))
	case endApply:
		err = a.apply(e, name, false, a.workOptions(sizeFlag(agentwork.DefaultLimits.Bytes)))
	case endDiscard:
		return e.Work().Discard(ctx, name)
	case endKeep:
	}
	if k, kerr := e.Work().Workspace(ctx, name); kerr == nil {
		a.noteKept(k)
	}
	return err
}

// noteKept shows what can be done with kept work.
func (a *app) noteKept(k agentwork.Kept) {
	short := shortName(k.Name)
	if !k.Unfetched {
		a.note(textWorkKept)
		a.note(hintWorkRemove, short)
		return
	}
	a.note(textWorkKept)
	if k.Git {
		a.note(hintWorkFetch, short, k.Target)
	} else {
		a.note(hintWorkApply, short, k.Target)
	}
	a.note(hintWorkDiscard, short)
}

// ending is what the user wants to do with the work.
type ending string

const (
	endKeep    ending = "keep"
	endFetch   ending = "fetch"
	endApply   ending = "apply"
	endDiscard ending = "discard"
)

// endTries is how often the question is asked.
const endTries = 3

// chooseEnd asks what to do with the work. Without a terminal or an answer it is kept.
func (a *app) chooseEnd(k agentwork.Kept, f runFlags) ending {
	if f.fetch {
		return endFetch
	}
	if _, ok := a.terminal(); !ok || f.spec.NoInput || !k.Unfetched || a.ctx.Err() != nil {
		return endKeep
	}
	question, choices := textEndPlain, []ending{endApply, endKeep, endDiscard}
	if k.Git {
		question, choices = textEndGit, append(choices, endFetch)
	}
	for range endTries {
		a.prompt(question)
		answer, err := a.readLine()
		answer = strings.ToLower(strings.TrimSpace(answer))
		if err != nil || answer == "" {
			return endKeep
		}
		for _, c := range choices {
			if answer == string(c) || answer == string(c[:1]) {
				return c
			}
		}
	}
	return endKeep
}

// checkUnfetched returns an error if a bottle has work that would be lost.
func (a *app) checkUnfetched(e *bottle.Engine, name string) error {
	k, err := e.Work().Workspace(a.ctx, name)
	if errors.Is(err, agentwork.ErrNone) {
		return nil
	}
	if err == nil && k.Unfetched {
		err = withHint(fmt.Errorf(textUnfetched, name, size(k.Used)), hintUnfetched, shortName(name), k.Target)
	}
	return err
}

// discardWork removes a bottle's work, if there is any.
func (a *app) discardWork(e *bottle.Engine, name string) error {
	if err := e.Work().Discard(a.ctx, name); !errors.Is(err, agentwork.ErrNone) {
		return err
	}
	return nil
}
