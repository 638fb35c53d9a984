package main

import (
	"context"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/proxy"
)

// showRefusals returns a function that shows new refusals in the terminal's title
// until its context ends.
func (a *app) showRefusals(e *bottle.Engine, name string) func(context.Context, *screen) {
	return func(ctx context.Context, s *screen) {
		for entry, err := range e.Proxies().Sample(ctx, name) {
			if err != nil {
				return // bottle egress reports it
			}
			if entry.Verdict() == egress.VerdictRefused {
				s.show(refusalTitle(name, entry))
			}
		}
	}
}

// watchSecrets renews injected secrets whose files change, until the returned function is
// called, which reports the files that could not be used.
func (a *app) watchSecrets(b *bottle.Bottle) func() {
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.ctx))
	done := make(chan struct{})
	failed := map[string]error{}
	go func() {
		defer close(done)
		b.WatchSecrets(ctx, func(variable string, err error) { failed[variable] = err })
	}()
	return func() {
		cancel()
		<-done
		for variable, err := range failed {
			a.note(textNotRenewed, variable, oneLine(err.Error()))
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
	limits := map[proxy.LimitError]bool{}
	go func() {
		defer close(done)
		e.Proxies().Watch(ctx, name, func(reached []*proxy.LimitError, err error) {
			for _, l := range reached {
				limits[*l] = true
			}
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
		for l := range limits {
			a.note(textProxyLimit, name, limitText(string(l.Limit), l.Value))
			if l.Limit == "memory" {
				a.note(hintProxyMemory)
			}
		}
		if failed != nil {
			a.note(textNoRestart, name, oneLine(failed.Error()))
		}
	}
}
