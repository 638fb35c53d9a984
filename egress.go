package bottle

import (
	"context"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
)

// Allow adds an entry to the policy of a running bottle: host, *.name, host:port or a
// preset. It returns when the proxy enforces the new policy for new connections. After
// an error the old policy is in force.
func (e *Engine) Allow(ctx context.Context, name, entry string) (proxy.PolicyChange, error) {
	return e.proxies.Allow(ctx, name, entry)
}

// Deny removes every entry of a host, including ssh entries, from the policy of a
// running bottle: host, *.name, host:port or a preset. Open tunnels stay open.
func (e *Engine) Deny(ctx context.Context, name, entry string) (proxy.PolicyChange, error) {
	return e.proxies.Deny(ctx, name, entry)
}

// LimitError is a limit that a task has reached.
type LimitError = runtime.LimitError

// WatchProxy restarts a bottle's proxy whenever it exits, until ctx ends or the bottle is
// removed. restarted is called each time, with the limits that the proxy had reached when
// it exited, and the error if it could not be started.
func (e *Engine) WatchProxy(ctx context.Context, name string, restarted func([]*LimitError, error)) {
	e.proxies.Watch(ctx, name, restarted)
}

// EgressLog yields the retained egress log of a bottle and the log of its ssh agent (up
// to 16 MiB each), by time and without lines before since. With follow it continues with new lines until ctx ends or the bottle is
// removed. An error is yielded last.
func (e *Engine) EgressLog(ctx context.Context, name string, since time.Time, follow bool) iter.Seq2[egress.Entry, error] {
	return e.proxies.Log(ctx, name, since, follow)
}

// SampleEgress yields new entries of the egress log of a bottle, but not all of them if
// there are many: it is for a display next to a session, which must not let the agent use
// CPU time on the host. It ends with ctx or the bottle.
func (e *Engine) SampleEgress(ctx context.Context, name string) iter.Seq2[egress.Entry, error] {
	return e.proxies.Sample(ctx, name, time.Second)
}

// EgressSummary aggregates the egress log of a bottle by host and port, from since on,
// refused destinations first.
func (e *Engine) EgressSummary(ctx context.Context, name string, since time.Time) ([]egress.HostSummary, error) {
	return e.proxies.Summary(ctx, name, since)
}

// RunProxy runs the built-in egress proxy until ctx ends. It reads its configuration
// again for each value received from reload.
func RunProxy(ctx context.Context, config string, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	return egress.Main(ctx, config, reload, stdout, stderr)
}

// KeepProxyLog writes the streams of a proxy to its log file until all of them have
// ended. After a value is received from stop it drops what it cannot write.
func KeepProxyLog(file string, stop <-chan os.Signal, streams ...io.Reader) error {
	return egress.KeepLog(file, stop, streams...)
}

// WatchRules restores the host's firewall rules of all bottles whenever another program
// removes them, until stop is called, which waits for the watch to end.
func (e *Engine) WatchRules(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := e.net.WatchRules(ctx); err != nil {
			e.log.Warn("cannot watch the host's firewall rules", "error", err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

// Refresh restores the host's firewall rules of all running bottles, for example after
// a reload of the host's firewall has removed them.
func Refresh(ctx context.Context, cfg Config) error {
	m, err := netns.New(netns.Config{RunDir: cfg.RunDir, PluginDirs: filepath.SplitList(cfg.CNIPath), ConfDir: cfg.CNIConf, Log: cfg.Log})
	if err != nil {
		return err
	}
	return m.Refresh(ctx)
}
