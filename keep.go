package bottle

import (
	"context"
	"path/filepath"

	"github.com/bot-bottle/bottle/netns"
)

// KeepRules has the host's firewall rules of all bottles written again whenever
// somebody takes them away, until stop is called, which waits for the end.
func (e *Engine) KeepRules(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := e.net.WatchRules(ctx); err != nil {
			e.log.Warn("the host's rules are not kept", "error", err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// Refresh writes the host's firewall rules of the bottles that run again, as
// after a reload of the host's firewall took them away.
func Refresh(ctx context.Context, cfg Config) error {
	m, err := netns.New(netns.Config{RunDir: cfg.RunDir, PluginDirs: filepath.SplitList(cfg.CNIPath), ConfDir: cfg.CNIConf, Log: cfg.Log})
	if err != nil {
		return err
	}
	return m.Refresh(ctx)
}
