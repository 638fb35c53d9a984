package netns

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/nftables"
)

// Keep watches the host's firewall until ctx ends and writes bottle's rules
// again when somebody took them away: a reload of the firewall flushes all
// tables, as a rule. Until they are back nothing is open that was not, but what
// is allowed does not come through. Any number of processes may do so at once.
func (m *Manager) Keep(ctx context.Context) error {
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
		// Before the first event too: the flush may have come before the watch.
		if err := m.mend(ctx); err != nil {
			m.log.Error("keep the host's rules", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok {
				return errors.New("watch the host's firewall: it tells no more")
			}
		}
	}
}

// mend writes only what is missing, so that two that watch do not answer each
// other for ever.
func (m *Manager) mend(ctx context.Context) error {
	err := m.HostStands(ctx)
	if !errors.Is(err, ErrFlushed) {
		return err
	}
	m.log.Info("write the host's rules again", "reason", err)
	return m.Refresh(ctx)
}
