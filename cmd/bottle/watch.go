package main

import (
	"context"
	"time"

	"github.com/bot-bottle/bottle/egress"

	"github.com/bot-bottle/bottle"
)

// showRefusals returns a function that shows new refusals in the terminal's title
// until its context ends.
func (a *app) showRefusals(e *bottle.Engine, name string) func(context.Context, *screen) {
	return func(ctx context.Context, s *screen) {
		for entry, err := range e.EgressLog(ctx, name, time.Now(), true) {
			if err != nil {
				return // bottle egress reports it
			}
			if entry.Verdict() == egress.VerdictRefused {
				s.show(refusalTitle(name, entry))
			}
		}
	}
}

// watchProxy restarts a bottle's proxy when it ends, until the returned function is
// called. That function reports the restarts: during the session, the screen
// belongs to the agent.
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
			a.note(textNoRestart, name, oneLine(failed.Error()))
		}
	}
}
