package netns

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watchInterval is the minimum time between two checks of the host's rules. It bounds
// the work of a watcher on a host whose ruleset changes continuously. After a failed
// attempt to restore the rules it doubles, up to maxWatchInterval: the attempt itself
// changes the ruleset, so that each would cause the next one.
const (
	watchInterval    = 500 * time.Millisecond
	maxWatchInterval = time.Minute
)

// WatchRules watches the host's firewall until ctx ends and restores bottle's rules
// when they were removed; reloading a firewall usually flushes all tables. Until the
// rules are restored nothing more is open to an agent, but allowed traffic is dropped.
// Any number of processes may watch concurrently.
//
// An agent cannot cause any work here: the events are those of the host's namespace,
// and neither they nor what is checked depend on an agent's traffic.
func (m *Manager) WatchRules(ctx context.Context) error { return (&watcher{m: m}).run(ctx) }

// watcher is one WatchRules.
type watcher struct {
	m      *Manager
	checks int // so far
}

func (w *watcher) run(ctx context.Context) error {
	events, err := subscribe()
	if err != nil {
		return err
	}
	changed := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() { ended <- events.forward(changed) }()
	defer func() {
		_ = events.f.Close() // ends forward
		<-ended              //nolint:errcheck // closing the socket is what ended it
	}()
	interval := watchInterval
	for {
		// Before the first event too: the flush may have preceded the subscription.
		restored := w.check(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(interval):
		}
		if !restored {
			interval = min(2*interval, maxWatchInterval)
			continue
		}
		interval = watchInterval
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			ended <- nil // for the deferred function
			return err
		case <-changed:
		}
	}
}

// check reports whether the rules are complete. It restores them only if something is
// missing, so that concurrent watchers do not trigger one another endlessly.
func (w *watcher) check(ctx context.Context) bool {
	w.checks++
	err := w.m.VerifyHost(ctx)
	if errors.Is(err, ErrFlushed) {
		w.m.log.Info("restore the host's rules", "reason", err)
		if err = w.m.Refresh(ctx); err == nil {
			err = w.m.VerifyHost(ctx)
		}
	}
	if err != nil && ctx.Err() == nil {
		w.m.log.Error("restore the host's rules", "error", err)
	}
	return err == nil
}

// ruleEvents is a netlink socket that receives a message for each change of the
// ruleset in the thread's namespace.
type ruleEvents struct{ f *os.File }

func subscribe() (*ruleEvents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("watch the host's firewall: %w", err)
	}
	f := os.NewFile(uintptr(fd), "nftables events")
	group := &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}
	if err := unix.Bind(fd, group); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the host's firewall: %w", err), f.Close())
	}
	return &ruleEvents{f}, nil
}

// forward reads all messages and merges them into one pending event. It returns when
// the socket is closed. The contents of the messages do not matter. The kernel sends
// them after the change, and reports ENOBUFS if there were too many to queue: that is
// a change, too.
func (e *ruleEvents) forward(changed chan<- struct{}) error {
	buf := make([]byte, 16) // the rest of a message is discarded
	for {
		_, err := e.f.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watch the host's firewall: %w", err)
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}
