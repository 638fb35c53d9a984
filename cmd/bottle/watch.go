package main

import (
	"context"
	"time"

	"github.com/bot-bottle/bottle/egress"

	"github.com/bot-bottle/bottle"
)

// tellRefusals tells what is refused from now on in the terminal's title, until
// ctx ends.
func (a *app) tellRefusals(e *bottle.Engine, name string) func(context.Context, *screen) {
	return func(ctx context.Context, s *screen) {
		for entry, err := range e.EgressLog(ctx, name, time.Now(), true) {
			if err != nil {
				return // the log itself tells, to who asks for it
			}
			if entry.Verdict() == egress.VerdictRefused {
				s.tell(refusalTitle(name, entry))
			}
		}
	}
}

// watchProxy has a bottle's proxy started again when it ends, for as long as a
// session lasts. The function that it returns ends that, and tells what happened:
// not before, as the screen is the agent's.
func (a *app) watchProxy(e *bottle.Engine, name string) func() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.ctx))
	times, done := 0, make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		e.WatchProxy(ctx, name, func(err error) {
			if failed = err; err == nil {
				times++
			}
		})
	}()
	return func() {
		cancel()
		<-done
		if times > 0 {
			a.note(textRestarted, name)
		}
		if failed != nil {
			a.note(textNoRestart, name, oneLine(failed))
		}
	}
}
