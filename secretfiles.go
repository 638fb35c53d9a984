package bottle

import (
	"context"
	"time"

	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/policy"
)

// secretInterval is how often the files of injected secrets are read. They are small, and
// a notification would not be sent for every file system.
const secretInterval = 2 * time.Second

// WatchSecrets gives the bottle's proxy the new values of injected secrets whose files
// change, until ctx ends. failed is called once for each variable whose file can no longer
// be used, and again after it could be; until then requests get the last value.
func (b *Bottle) WatchSecrets(ctx context.Context, failed func(variable string, err error)) {
	files := b.plan.InjectedFiles()
	if len(files) == 0 {
		return
	}
	known, broken := map[string]secret.Value{}, map[string]bool{}
	for _, v := range files {
		known[v.Name] = v.Secret
	}
	for tick := time.NewTicker(secretInterval); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
		for _, v := range files {
			value, err := b.plan.Reread(v)
			if err == nil && value.Reveal() != known[v.Name].Reveal() {
				if err = b.renew(ctx, v.Name, value); err == nil {
					known[v.Name] = value
				}
			}
			if err != nil && !broken[v.Name] && ctx.Err() == nil {
				failed(v.Name, err)
			}
			broken[v.Name] = err != nil
		}
	}
}

// renew replaces a secret that was read from a file. It is written to the audit log first.
func (b *Bottle) renew(ctx context.Context, variable string, value secret.Value) error {
	err := b.e.cfg.Audit.Write(audit.Event{Kind: audit.SecretUse, Bottle: b.Name, Secret: variable, Source: policy.SecretFile})
	if err != nil {
		return err
	}
	return b.e.proxies.SetSecret(ctx, b.Name, variable, policy.SecretFile, value)
}
