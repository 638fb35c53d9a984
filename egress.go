package bottle

import (
	"context"
	"io"
	"iter"
	"os"
	"time"

	"path/filepath"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/proxy"
)

// Allow adds an entry to the policy of a running bottle: host, *.name or host:port. It
// returns when the proxy has the new policy in force, for connections that begin from
// then on; after an error the old one is in force.
func (e *Engine) Allow(ctx context.Context, name, entry string) (proxy.PolicyChange, error) {
	return e.proxies.Allow(ctx, name, entry)
}

// Deny removes every entry of a host, ssh's too, from the policy of a running bottle:
// host, *.name or host:port. Open tunnels stay open.
func (e *Engine) Deny(ctx context.Context, name, entry string) (proxy.PolicyChange, error) {
	return e.proxies.Deny(ctx, name, entry)
}

// WatchProxy restarts a bottle's proxy whenever it ends, until ctx ends or the bottle is
// gone. restarted is called each time, with the error if the proxy could not be started.
func (e *Engine) WatchProxy(ctx context.Context, name string, restarted func(error)) {
	e.proxies.Watch(ctx, name, restarted)
}

// EgressLog yields the egress log of a bottle as far as it is kept (16 MiB), without
// lines before since. With follow it goes on with new lines, until ctx ends or the
// bottle is gone. An error is yielded last.
func (e *Engine) EgressLog(ctx context.Context, name string, since time.Time, follow bool) iter.Seq2[egress.Entry, error] {
	return e.proxies.Log(ctx, name, since, follow)
}

// EgressSummary adds up the egress log of a bottle by host and port, from since on,
// refused destinations first.
func (e *Engine) EgressSummary(ctx context.Context, name string, since time.Time) ([]egress.HostSummary, error) {
	return e.proxies.Summary(ctx, name, since)
}

// RunProxy is the built-in egress proxy's process, until ctx ends; each value
// of reload has it read its configuration again.
func RunProxy(ctx context.Context, config string, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	return egress.Main(ctx, config, reload, stdout, stderr)
}

// KeepProxyLog is the process that writes a proxy's log to file, until all of
// the proxy's streams have ended; a value of stop has it give up what it cannot
// write.
func KeepProxyLog(file string, stop <-chan os.Signal, streams ...io.Reader) error {
	return egress.KeepLog(file, stop, streams...)
}

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
