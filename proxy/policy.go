package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/runtime"
)

// reloadTimeout bounds the wait for a proxy to log that it has loaded a new policy.
const reloadTimeout = 15 * time.Second

// undoTimeout bounds restoring the old policy after a failed change, which may have
// failed because its context ended.
const undoTimeout = 2 * time.Minute

// PolicyChange is the result of Allow or Deny.
type PolicyChange struct {
	// Changed is false if the policy was already as requested.
	Changed bool
	// Entries are the entries that were added or removed.
	Entries []string
	// Manifest and Bottle say where the bottle's policy came from.
	Manifest, Bottle string
}

// Allow adds an entry to the policy of a running bottle: host, *.name, host:port or
// the name of a preset, which adds its hosts. It returns when the proxy enforces the new
// policy for new connections. After an error the old policy is in force.
func (m *Manager) Allow(ctx context.Context, name, entry string) (PolicyChange, error) {
	if err := m.rules.Egress(egress.Entries{Allow: []string{entry}}, false); err != nil {
		return PolicyChange{}, err
	}
	return m.changeEach(ctx, name, entry, func(entries egress.Entries, one egress.ListEntry) (egress.Entries, egress.Change, error) {
		left, change, err := entries.Allowing(one)
		if err == nil && len(change.Added.Allow) > 0 {
			err = reachable(left, one.Rules[0])
		}
		return left, change, err
	})
}

// reachable returns an error if rule, an entry of allow, can never be reached.
func reachable(entries egress.Entries, rule egress.Rule) error {
	if p := allowProblem(entries, rule); p != nil {
		return p
	}
	return nil
}

// Deny removes every entry of a host, those of ssh too, from the policy of a running
// bottle: host, *.name, host:port or the name of a preset, which denies its hosts. If
// another entry, such as *.name, still allows it, an exception from that is added. Open
// tunnels stay open.
func (m *Manager) Deny(ctx context.Context, name, entry string) (PolicyChange, error) {
	return m.changeEach(ctx, name, entry, egress.Entries.Denying)
}

// changeEach changes the policy for each destination of an entry: the policy of a
// running bottle has no presets, so that it does not depend on bottle's version.
func (m *Manager) changeEach(ctx context.Context, name, text string, change func(egress.Entries, egress.ListEntry) (egress.Entries, egress.Change, error)) (PolicyChange, error) {
	entry, err := egress.ParseListEntry(text)
	if err != nil {
		return PolicyChange{}, err
	}
	return m.changePolicy(ctx, name, func(entries *egress.Entries) ([]string, error) {
		left := *entries
		var all []string
		for _, one := range entry.Each() {
			next, c, err := change(left, one)
			var narrowed *egress.NarrowedError
			if entry.Preset != "" && errors.As(err, &narrowed) {
				continue // it can be reached already, by its rules
			}
			if err != nil {
				return nil, err
			}
			left, all = next, append(all, changed(c)...)
		}
		*entries = left
		return all, nil
	})
}

// changed lists the entries of a change, without duplicates.
func changed(c egress.Change) []string {
	all := slices.Concat(c.Added.Allow, c.Removed.Deny, c.Removed.Allow, c.Removed.SSH, c.Added.Deny)
	slices.Sort(all)
	return slices.Compact(all)
}

// changePolicy changes the policy files, the packet filter and the proxy, in an order
// that at no time allows what neither the old nor the new policy allows.
func (m *Manager) changePolicy(ctx context.Context, name string, change func(*egress.Entries) ([]string, error)) (PolicyChange, error) {
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return PolicyChange{}, err
	}
	defer unlock()
	old, err := m.Load(name)
	if err != nil {
		return PolicyChange{}, err
	}
	state := old
	entries, err := change(&state.Entries)
	result := PolicyChange{Changed: len(entries) > 0, Entries: entries, Manifest: old.Manifest, Bottle: old.Bottle}
	if err != nil || !result.Changed {
		return result, err
	}
	if err := m.applyPolicy(ctx, name, state); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return PolicyChange{}, errors.Join(fmt.Errorf("change the policy of %s: %w", name, err), m.applyPolicy(undo, name, old))
	}
	return result, nil
}

// applyPolicy puts a policy into force. A proxy that is not running reads it when it
// starts. A proxy whose configuration does not change is not reloaded: pipelock's
// configuration has no ports, and pipelock ignores a reload of the same file for some
// time without logging it.
func (m *Manager) applyPolicy(ctx context.Context, name string, s State) error {
	file := m.configFile(name, s)
	before, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read proxy configuration: %w", err)
	}
	// Open the log before writing the file: pipelock also watches the file, may have
	// reloaded it before the signal arrives, and then ignores the signal.
	wait, err := m.prepareReload(ctx, m.proxy(name))
	if err != nil {
		return err
	}
	defer wait.close()
	if err := m.Store(name, s); err != nil {
		return err
	}
	after, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read proxy configuration: %w", err)
	}
	d, err := s.Destinations()
	if err != nil {
		return err
	}
	if s.Kind == manifest.ProxyPipelock || len(d.Private) > 0 {
		if err := m.net.SetDestinations(ctx, m.bottleDir(name), d); err != nil {
			return err
		}
	}
	if bytes.Equal(before, after) {
		return nil
	}
	return m.reload(wait)
}

// Give puts a policy into force in the proxy of a bottle that was launched ahead of its
// use, and the encoded secrets that it inserts with the policy; nil: none. Unlike a change
// of the policy, it needs a proxy that is running: nobody has watched this one.
func (m *Manager) Give(ctx context.Context, name string, s State, secrets, roots []byte) error {
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := s.Destinations()
	if err != nil {
		return err
	}
	wait, err := m.prepareReload(ctx, m.proxy(name))
	if err != nil {
		return err
	}
	defer wait.close()
	if secrets != nil {
		if err := m.StoreSecrets(name, s, secrets, roots); err != nil {
			return err
		}
	}
	before, err := os.ReadFile(m.configFile(name, s))
	if err != nil {
		return fmt.Errorf("read proxy configuration: %w", err)
	}
	if err := m.Store(name, s); err != nil {
		return err
	}
	after, err := os.ReadFile(m.configFile(name, s))
	if err != nil {
		return fmt.Errorf("read proxy configuration: %w", err)
	}
	if s.Kind == manifest.ProxyPipelock || len(d.Private) > 0 {
		if err := m.net.SetDestinations(ctx, m.bottleDir(name), d); err != nil {
			return err
		}
	}
	if bytes.Equal(before, after) {
		return nil
	}
	if err := m.signalReload(wait); err != nil {
		return fmt.Errorf("give the proxy of %s its policy: %w", name, err)
	}
	return nil
}

// reloadWait reads the log of a process from the moment before a reload.
type reloadWait struct {
	process
	ctx   context.Context
	lines *egress.Log
	close func()
}

// prepareReload opens the process's log at its end.
func (m *Manager) prepareReload(ctx context.Context, p process) (*reloadWait, error) {
	ctx, cancel := context.WithTimeout(ctx, reloadTimeout)
	log, err := egress.OpenLog(ctx, p.log, true)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &reloadWait{process: p, ctx: ctx, lines: log, close: func() {
		_ = log.Close() // read only
		cancel()
	}}
	if err := log.SkipToEnd(); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// reload makes the process read its configuration and returns when it has logged the
// result.
func (m *Manager) reload(wait *reloadWait) error {
	err := m.signalReload(wait)
	if errors.Is(err, runtime.ErrNotRunning) {
		return nil
	}
	return err
}

// signalReload is reload for a process that has to be running.
func (m *Manager) signalReload(wait *reloadWait) error {
	if err := m.rt.Signal(wait.ctx, wait.id, syscall.SIGHUP); err != nil {
		return err
	}
	for entry, err := range egress.ParseLog(wait.lines) {
		switch {
		case err != nil:
			return err
		case entry.Event == egress.EventReload:
			return nil
		case entry.Event == egress.EventError && entry.Target == "" && entry.URL == "":
			return errors.New(strings.TrimSpace(entry.Reason))
		}
	}
	return fmt.Errorf("proxy did not confirm the new policy within %s", reloadTimeout)
}
