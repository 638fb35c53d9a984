package bottle

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
)

const (
	// secretInterval is how often the files of injected secrets are read. They are small,
	// and a notification would not be sent for every file system.
	secretInterval = 2 * time.Second
	// retryInterval is how often a command is run that has failed to renew a secret.
	retryInterval = 30 * time.Second
)

// WatchSecrets gives the bottle's proxy the new values of injected secrets whose files
// change, or whose commands have to be run again because the value expires, until ctx ends.
// failed is called once for each variable that can no longer be renewed, and again after it
// could be, and never twice at the same time; until then requests get the last value.
func (b *Bottle) WatchSecrets(ctx context.Context, failed func(variable string, err error)) {
	var watchers sync.WaitGroup
	defer watchers.Wait()
	var mu sync.Mutex
	for _, v := range b.plan.Renewable() {
		watchers.Go(func() {
			b.watchSecret(ctx, v, func(err error) {
				mu.Lock()
				defer mu.Unlock()
				failed(v.Name, err)
			})
		})
	}
}

func (b *Bottle) watchSecret(ctx context.Context, v provision.Variable, failed func(error)) {
	known, broken := v.Secret, false
	next := b.plan.RenewAt(v)
	tick := time.NewTicker(secretInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		// Compared as times of day, which go on while the host is suspended.
		if time.Now().Round(0).Before(next) {
			continue
		}
		value, renewed, err := b.plan.Renew(ctx, v)
		if text := value.Reveal(); text != "" && text != known.Reveal() {
			if e := b.renew(ctx, v, value); e == nil {
				known = value
			} else {
				err = errors.Join(err, e)
			}
		}
		switch {
		case err == nil:
			next = renewed
		case v.Source == manifest.SourceCommand:
			next = time.Now().Round(0).Add(retryInterval)
		}
		if err != nil && !broken && ctx.Err() == nil {
			failed(err)
		}
		broken = err != nil
	}
}

// renew replaces a secret. It is written to the audit log first.
func (b *Bottle) renew(ctx context.Context, v provision.Variable, value secret.Value) error {
	if err := auditSecrets(b.e.cfg.Audit, b.Name, []provision.Variable{v}); err != nil {
		return err
	}
	return b.e.proxies.SetSecret(ctx, b.Name, v.Name, plan.SecretSource(v), value)
}
