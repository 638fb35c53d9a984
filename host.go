package bottle

import (
	"context"
	"errors"
	"slices"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/proven"
	"github.com/bot-bottle/bottle/internal/scratch"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
)

// What a launch needs to know of this host (plan.Host), and what watches it.

// Taken returns every name that a new bottle cannot have: those of the namespace's
// containers, of directories and processes that a bottle left behind, and of workspaces.
func (e *Engine) Taken(ctx context.Context) (map[string]bool, error) { return e.teardown.Names(ctx) }

// Image describes an image in containerd's store.
func (e *Engine) Image(ctx context.Context, ref string) (plan.ImageInfo, error) {
	return e.Images().Image(ctx, ref)
}

// Runtime checks that a task can run under the named runtime, unless a launch has proved that
// and nothing has changed since then.
func (e *Engine) Runtime(ctx context.Context, name string) error {
	if e.rt.Proven(ctx, name) {
		return nil
	}
	return e.CheckRuntime(ctx, name)
}

// CheckRuntime checks that a task can run under the named runtime: that its program and its
// shim exist and answer. It works in a directory on tmpfs, which it removes.
func (e *Engine) CheckRuntime(ctx context.Context, name string) error {
	if err := e.teardown.MakeRunDir(); err != nil {
		return err
	}
	dir, err := scratch.New(ctx, e.dir(""))
	if err != nil {
		return err
	}
	err = runtime.Hint(e.rt.CheckRuntime(ctx, name, dir.Path))
	err = errors.Join(err, dir.Close())
	e.teardown.Prune()
	return err
}

// ShimWarning returns, after CheckRuntime, why agents under runsc would not survive that
// containerd stops; nil if they do.
func (e *Engine) ShimWarning() error { return e.rt.CheckShim() }

// Version returns containerd's version.
func (e *Engine) Version(ctx context.Context) (string, error) {
	v, err := e.rt.Containerd().Version(ctx)
	return v.Version, err
}

// Network describes the networks that a launch would create on this host.
func (e *Engine) Network(ctx context.Context) (plan.Network, error) {
	info, err := e.net.Plan(ctx)
	if err != nil {
		return plan.Network{}, withFixes(err)
	}
	return plan.Network{
		Internal: info.Internal, Egress: info.Egress, Bridge: info.Bridge,
		Changes: append([]string{}, slices.Sorted(slices.Values(sentences(info.Changes)))...), Warnings: sentences(info.Warnings),
	}, nil
}

// recordProven records the checks of the host that this process has done, after a launch. A
// record saves time and nothing else, so that a launch does not fail for want of it.
func (e *Engine) recordProven() {
	if err := errors.Join(e.rt.RecordProven(), e.net.RecordProven()); err != nil {
		e.log.Info("cannot record what a launch has proved", "error", err)
	}
}

// forgetProven lets the next plan check the host completely, after a launch has failed.
func (e *Engine) forgetProven() {
	if err := proven.Forget(e.cfg.RunDir); err != nil {
		e.log.Warn("a plan may rely on old checks", "error", err)
	}
}

func sentences(findings []netns.Finding) []string {
	var out []string
	for _, f := range findings {
		out = append(out, f.String())
	}
	return out
}

// withFixes adds its fix as a hint to each problem joined in err.
func withFixes(err error) error {
	var all hint.Problems
	for _, m := range hint.Split(err) {
		if p, ok := errors.AsType[*netns.Problem](m); ok {
			m = &hint.Error{Err: m, Hint: p.Fix}
		}
		all = append(all, m)
	}
	return all.Err()
}

// Workspace checks that workspaces of at most size bytes can be created on this host, and
// returns warnings.
func (e *Engine) Workspace(_ context.Context, size int64) ([]string, error) {
	return e.work.Check(size)
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
	m, err := cfg.network()
	if err != nil {
		return err
	}
	return m.Refresh(ctx)
}
