package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/runtime"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
)

// reloadTimeout bounds the wait for a proxy to say that it has a new policy.
const reloadTimeout = 15 * time.Second

// undoTimeout bounds the return to the old policy after a failed change. The change may
// have failed because its context ended.
const undoTimeout = 2 * time.Minute

// PolicyChange tells what Allow or Deny has done.
type PolicyChange struct {
	// Changed is false if the policy was so already.
	Changed bool
	// Entries are those added, or taken away.
	Entries []string
	// Manifest and Bottle say where the bottle's policy came from.
	Manifest, Bottle string
}

// Allow adds an entry to the policy of a bottle that runs: host, *.name or
// host:port. It returns when the proxy has the new policy in force, for
// connections that begin from then on; on an error the old one is.
func (p *Manager) Allow(ctx context.Context, name, entry string) (PolicyChange, error) {
	rule, err := egress.ParseRule(entry)
	if err != nil {
		return PolicyChange{}, err
	}
	return p.changePolicy(ctx, name, func(entries *egress.Entries) ([]string, error) {
		return addEntry(entries, rule)
	})
}

func addEntry(entries *egress.Entries, rule egress.Rule) ([]string, error) {
	for _, s := range entries.Allow {
		if have, err := egress.ParseRule(s); err == nil && have == rule {
			return nil, nil
		}
	}
	entries.Allow = append(slices.Clone(entries.Allow), rule.String())
	return []string{rule.String()}, nil
}

// Deny takes away every entry of a host, ssh's too, from the policy of a bottle
// that runs: host, *.name or host:port. Tunnels that are open stay so. It is an
// error when another entry still covers the host.
func (p *Manager) Deny(ctx context.Context, name, entry string) (PolicyChange, error) {
	rule, err := egress.ParseRule(entry)
	if err != nil {
		return PolicyChange{}, err
	}
	return p.changePolicy(ctx, name, func(entries *egress.Entries) ([]string, error) {
		return dropEntries(entries, rule)
	})
}

func dropEntries(entries *egress.Entries, rule egress.Rule) ([]string, error) {
	var gone []string
	keep := func(list []string, parse func(string) (egress.Rule, error)) []string {
		return slices.DeleteFunc(slices.Clone(list), func(s string) bool {
			have, err := parse(s)
			drop := err == nil && have.Host == rule.Host && (rule.Port == 0 || have.Port == rule.Port)
			if drop {
				gone = append(gone, s)
			}
			return drop
		})
	}
	left := *entries
	left.Allow, left.SSH = keep(entries.Allow, egress.ParseRule), keep(entries.SSH, egress.ParseSSHRule)
	policy, err := left.Policy()
	if err != nil {
		return nil, err
	}
	if cover := policy.Covering(rule); cover != "" {
		return nil, &hint.Error{
			Err:  fmt.Errorf("%s is still allowed by the entry %s", rule, cover),
			Hint: "deny that entry",
		}
	}
	*entries = left
	return gone, nil
}

// changePolicy changes the policy's files, the packet filter and the proxy, in an
// order in which nothing is open that neither policy allows.
func (p *Manager) changePolicy(ctx context.Context, name string, change func(*egress.Entries) ([]string, error)) (PolicyChange, error) {
	unlock, err := p.lock(ctx, name)
	if err != nil {
		return PolicyChange{}, err
	}
	defer unlock()
	old, err := p.Load(name)
	if err != nil {
		return PolicyChange{}, err
	}
	state := old
	entries, err := change(&state.Entries)
	result := PolicyChange{Changed: len(entries) > 0, Entries: entries, Manifest: old.Manifest, Bottle: old.Bottle}
	if err != nil || !result.Changed {
		return result, err
	}
	if err := p.applyPolicy(ctx, name, state); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return PolicyChange{}, errors.Join(fmt.Errorf("change the policy of %s: %w", name, err), p.applyPolicy(undo, name, old))
	}
	return result, nil
}

// applyPolicy puts a policy in force. A proxy that is not running reads it when it
// is started. One whose configuration does not change is not asked to reload it:
// pipelock's has no ports, and pipelock ignores a reload of the same file for a
// while, without a line in its log.
func (p *Manager) applyPolicy(ctx context.Context, name string, s State) error {
	file := filepath.Join(p.Dir(name), "config", s.configFile())
	before, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the proxy's configuration: %w", err)
	}
	// Before the file is written: pipelock also watches it, and may have reloaded
	// it by the time of the signal, which it then ignores.
	wait, err := p.awaitReload(ctx, name)
	if err != nil {
		return err
	}
	defer wait.close()
	if err := p.Store(name, s); err != nil {
		return err
	}
	after, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the proxy's configuration: %w", err)
	}
	d, err := s.Destinations()
	if err != nil {
		return err
	}
	if s.Kind == manifest.ProxyPipelock || len(d.Private) > 0 {
		if err := p.net.SetDestinations(ctx, p.bottleDir(name), d); err != nil {
			return err
		}
	}
	if bytes.Equal(before, after) {
		return nil
	}
	return p.reload(wait, name)
}

// reloadWait is a proxy's log from a point in time on.
type reloadWait struct {
	ctx   context.Context
	log   *egress.Log
	close func()
}

func (p *Manager) awaitReload(ctx context.Context, name string) (*reloadWait, error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	log, err := egress.OpenLog(ctx, p.LogFile(name), true)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &reloadWait{ctx: ctx, log: log, close: func() {
		_ = log.Close() // read only
		cancel()
	}}
	if err := log.SkipToEnd(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// reloadProxy makes the proxy read its configuration, and returns when its log says
// that it did.
func (p *Manager) reload(wait *reloadWait, name string) error {
	if err := p.rt.Signal(wait.ctx, names.Proxy(name), syscall.SIGHUP); err != nil {
		if errors.Is(err, runtime.ErrNotRunning) {
			return nil
		}
		return err
	}
	for entry, err := range egress.ParseLog(wait.log) {
		switch {
		case err != nil:
			return err
		case entry.Event == egress.EventReload:
			return nil
		case entry.Event == egress.EventError && entry.Target == "" && entry.URL == "":
			return errors.New(strings.TrimSpace(entry.Reason))
		}
	}
	return fmt.Errorf("the proxy has not said within %s that it has the new policy", reloadTimeout)
}
