package bottle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/shareddir"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
)

// Bottle is a live bottle: an agent task, a proxy task and their networks.
type Bottle struct {
	Name string
	// Timings are those of the launch, and of the teardown once it was done.
	Timings *Timings

	e     *Engine
	plan  *plan.Plan
	relay *sshRelay
	agent *runtime.Task
}

// Launch makes the bottle of a plan. It returns when the agent's sandbox runs
// and the proxy is healthy. After an error nothing is left of it; the error is
// that of the step that failed first. A name that was lost to somebody else
// since the plan was made gives way to the next free one, unless it is pinned;
// the plan is left as it was. A plan that is Pending needs ProvideImages first.
func (e *Engine) Launch(ctx context.Context, plan *plan.Plan) (*Bottle, error) {
	if plan.Pending() {
		return nil, errors.New("launch: the plan's images are not provided yet")
	}
	p := *plan
	timings := &Timings{}
	for {
		b, err := e.launch(ctx, &p, timings)
		if err == nil || p.Pinned || !errors.Is(err, runtime.ErrTaken) {
			return b, err
		}
		e.log.Info("name lost to another", "name", p.Name)
		taken, terr := e.Taken(ctx)
		if terr != nil {
			return nil, terr
		}
		taken[p.Name] = true
		if p.Name, err = names.Free(p.Agent, taken); err != nil {
			return nil, err
		}
	}
}

// launch is one attempt at one name.
type launch struct {
	e       *Engine
	plan    *plan.Plan
	dir     string
	timings *Timings
	undo    undo

	// Each latch is closed when what it names is there: the namespaces; the
	// internal segment, verified on the agent's side; all, verified.
	namespaced, segmented, networked chan struct{}

	pair         *netns.Pair
	rootfs       *runtime.RootFS
	guestProgram string // on the host
	relay        *sshRelay
	hold         *filelock.Lock // on the derived image's name
	// proxyRoot is the proxy's; nil for the built-in one.
	proxyRoot *runtime.RootFS
	agent     *runtime.Task
}

func (e *Engine) launch(ctx context.Context, p *plan.Plan, timings *Timings) (_ *Bottle, err error) {
	l := &launch{
		e: e, plan: p, dir: e.dir(p.Name), timings: timings,
		namespaced: make(chan struct{}), segmented: make(chan struct{}), networked: make(chan struct{}),
	}
	defer timings.begin("launch")()
	defer func() {
		if err == nil {
			return
		}
		// The first error is the user's; what undoing meets besides is logged.
		if uerr := l.undo.run(ctx); uerr != nil {
			e.log.Error("undo launch", "bottle", p.Name, "error", uerr)
		}
	}()
	if err := l.step(ctx, "claim", l.claim); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.makeNetwork(gctx) })
	g.Go(func() error { return l.makeAgent(gctx) })
	g.Go(func() error { return l.makeProxy(gctx) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// Some steps run to their end once they have begun.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &Bottle{Name: p.Name, Timings: timings, e: e, plan: p, relay: l.relay, agent: l.agent}, nil
}

// step runs one step of the launch, timed, unless the launch has failed
// meanwhile.
func (l *launch) step(ctx context.Context, name string, fn func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := l.injected(name, false); err != nil {
		return err
	}
	end := l.timings.begin(name)
	err := fn(ctx)
	end()
	if err != nil {
		return err
	}
	return l.injected(name, true)
}

func (l *launch) injected(step string, done bool) error {
	if l.e.fault == nil {
		return nil
	}
	return l.e.fault(step, done)
}

// wait blocks until the latch is closed or the launch has failed.
func wait(ctx context.Context, latch <-chan struct{}) error {
	select {
	case <-latch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// claim takes the name by making the bottle's folder: of two launches at once,
// one gets it. Containerd's refusal of a second container decides against
// everybody else.
func (l *launch) claim(context.Context) error {
	if err := l.e.makeRunDir(); err != nil {
		return err
	}
	// The last bottle to leave removes the parents, perhaps at this moment.
	err := shareddir.Mkdir(l.dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("claim %s: %w", l.plan.Name, runtime.ErrTaken)
	}
	if err != nil {
		return fmt.Errorf("claim %s: %w", l.plan.Name, err)
	}
	l.undo.push(func(context.Context) error { return l.e.removeFolders(l.plan.Name) })
	if err := shareddir.MkdirAll(l.e.stateDir(l.plan.Name), 0o700); err != nil {
		return fmt.Errorf("claim %s: %w", l.plan.Name, err)
	}
	return nil
}

func (l *launch) makeNetwork(ctx context.Context) error {
	resolvers, err := l.writeResolvConf()
	if err != nil {
		return err
	}
	l.undo.push(func(ctx context.Context) error { return l.e.net.Remove(ctx, l.dir) })
	err = l.step(ctx, "namespaces", func(ctx context.Context) (err error) {
		l.pair, err = l.e.net.Create(ctx, l.dir)
		return err
	})
	if err != nil {
		return err
	}
	close(l.namespaced)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := l.step(gctx, "internal network", l.pair.AttachInternal); err != nil {
			return err
		}
		if err := l.step(gctx, "verify segment", l.pair.VerifyAgent); err != nil {
			return err
		}
		close(l.segmented)
		return nil
	})
	g.Go(func() error {
		return l.step(gctx, "egress network", func(ctx context.Context) error {
			if err := l.openDestinations(ctx); err != nil {
				return err
			}
			return l.pair.AttachEgress(ctx, resolvers)
		})
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := l.step(ctx, "verify networks", l.pair.VerifyProxy); err != nil {
		return err
	}
	close(l.networked)
	return nil
}

func (l *launch) labels(role string) map[string]string {
	p := l.plan
	return map[string]string{
		runtime.LabelName: p.Name, runtime.LabelRole: role, runtime.LabelAgent: p.Agent,
		runtime.LabelImage: p.Image, runtime.LabelRuntime: p.Runtime, runtime.LabelProxy: p.Proxy.Kind,
	}
}
