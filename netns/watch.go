package netns

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
)

// WatchRules watches the host's firewall until ctx ends and restores bottle's
// rules when they were removed; reloading a firewall usually flushes all tables.
// Until the rules are restored nothing more is open to an agent, but allowed
// traffic is dropped. Any number of processes may watch concurrently.
func (m *Manager) WatchRules(ctx context.Context) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	monitor := nftables.NewMonitor(
		nftables.WithMonitorAction(nftables.MonitorActionAny),
		nftables.WithMonitorObject(nftables.MonitorObjectTables|nftables.MonitorObjectChains),
	)
	events, err := conn.AddGenerationalMonitor(monitor)
	if err != nil {
		return fmt.Errorf("watch the host's firewall: %w", err)
	}
	defer func() { _ = monitor.Close() }()
	for {
		// Before the first event too: the flush may have preceded the watch.
		if err := m.restoreRules(ctx); err != nil {
			m.log.Error("restore the host's rules", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok {
				return errors.New("watch the host's firewall: event stream ended")
			}
		}
	}
}

// restoreRules writes only if something is missing, so that concurrent watchers
// do not trigger one another endlessly.
func (m *Manager) restoreRules(ctx context.Context) error {
	err := m.VerifyHost(ctx)
	if !errors.Is(err, ErrFlushed) {
		return err
	}
	m.log.Info("restore the host's rules", "reason", err)
	return m.Refresh(ctx)
}
