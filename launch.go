package bottle

import (
	"context"
	"errors"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/injection"
	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/timing"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/sshagent"
	"github.com/bot-bottle/bottle/teardown"
)

// Launch creates the bottle of a plan and returns when the agent's sandbox is running
// and the proxy is healthy. After an error nothing is left of it; the error is that of
// the step that failed first. If the name has been taken since the plan was made, the
// next free name is used, unless the name is pinned. Launch does not change the plan.
// A Pending plan needs Images().Provide first, and one with EnvPipes or Commands
// Plan.ReadPipes and Plan.RunCommands.
func (e *Engine) Launch(ctx context.Context, plan *plan.Plan) (*Bottle, error) {
	switch {
	case plan.Pending():
		return nil, errors.New("cannot launch: the plan's images were not provided")
	case len(plan.EnvPipes) > 0:
		return nil, errors.New("cannot launch: the plan's pipes were not read")
	case plan.Commands():
		return nil, errors.New("cannot launch: the plan's commands were not run")
	}
	if plan.Prepared != nil && plan.Prepared.Name != "" {
		if b, err := e.claimPrepared(ctx, plan); b != nil || err != nil {
			return b, err
		}
	}
	in, err := injection.New(plan)
	if err != nil {
		return nil, err
	}
	return e.launchFree(ctx, plan, in, false)
}

// launchFree launches a bottle under the plan's name, or the next free one.
func (e *Engine) launchFree(ctx context.Context, plan *plan.Plan, in *injection.Injection, ahead bool) (*Bottle, error) {
	p := *plan
	timings := &timing.Timings{}
	for {
		l := &launch{
			e: e, plan: &p, dir: e.dir(p.Name), timings: timings, injection: in, ahead: ahead,
			namespaced: make(chan struct{}), networked: make(chan struct{}),
		}
		b, err := l.run(ctx)
		if err == nil || p.Pinned || !errors.Is(err, runtime.ErrTaken) {
			return b, err
		}
		e.log.Info("name was taken meanwhile", "name", p.Name)
		taken, terr := e.Taken(ctx)
		if terr != nil {
			return nil, terr
		}
		taken[p.Name] = true
		owner := e.cfg.Owner
		name, err := names.Free(p.Agent, names.VisibleNames(taken, owner))
		if err != nil {
			return nil, err
		}
		p.Name = names.ID(name, owner)
	}
}

// launch is one attempt to create a bottle under one name.
type launch struct {
	e       *Engine
	plan    *plan.Plan
	dir     string
	claim   *teardown.Claim // nil until the name is claimed
	timings *timing.Timings
	// injection is nil if no secret is injected.
	injection *injection.Injection
	// ahead: the bottle is prepared for a later run, and gets nothing that is its user's.
	ahead bool
	// placeholders are those of an agent that is started ahead, by variable.
	placeholders map[string]string
	// warm is the session of an agent that was started ahead; nil: there is none.
	warm *session.Warm
	// fork is nil unless the bottle is made from another one.
	fork *forked

	// Closed when the namespaces exist, and when all networks are verified.
	namespaced, networked chan struct{}

	pair         *netns.Pair
	rootfs       *runtime.RootFS
	guestProgram string // on the host
	workDir      string // of all sessions, in the workspace; empty: the image's
	relay        *sshagent.Forwarding
	hold         *filelock.Lock // on the derived image's name
	// proxyRoot is the proxy's; nil for the built-in one.
	proxyRoot *runtime.RootFS
	agent     *runtime.Task
}

func (l *launch) run(ctx context.Context) (_ *Bottle, err error) {
	defer l.timings.Begin("launch")()
	defer func() { l.claim.Unlock() }()
	defer func() {
		if err == nil {
			return
		}
		if ctx.Err() == nil && !errors.Is(err, runtime.ErrTaken) {
			l.e.forgetProven()
			err = l.e.teardown.ExplainFull(err) // before the undo frees the space
		}
		l.relay.Close()
		if l.claim == nil {
			return
		}
		// The user gets the first error; errors of the undo are only logged.
		if uerr := l.claim.Abort(ctx); uerr != nil {
			l.e.log.Error("undo launch", "bottle", l.plan.Name, "error", uerr)
		}
	}()
	err = l.step(ctx, "claim name", func(ctx context.Context) (err error) {
		l.claim, err = l.e.teardown.Claim(ctx, l.plan.Name)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := l.checkQuota(ctx); err != nil {
		return nil, err
	}
	if err := l.auditStart(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = auditEnd(l.e.cfg.Audit, l.plan.Name, "failed", err)
		}
	}()
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return l.createNetwork(gctx) })
	g.Go(func() error { return l.startAgent(gctx) })
	g.Go(func() error { return l.startProxy(gctx) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	// Some steps are not interrupted by a cancellation.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if l.ahead && l.plan.UsesWarm() {
		if err := l.step(ctx, "start agent ahead", l.startWarm); err != nil {
			return nil, err
		}
	}
	if l.ahead {
		if err := l.step(ctx, "warm up", l.warmUp); err != nil {
			return nil, err
		}
		if err := l.step(ctx, "record prepared", l.recordPrepared); err != nil {
			return nil, err
		}
	}
	if err := l.claim.Complete(); err != nil {
		return nil, err
	}
	l.e.recordProven()
	return l.bottle(), nil
}

// bottle returns the bottle that was launched.
func (l *launch) bottle() *Bottle {
	return &Bottle{Name: l.plan.Name, Timings: l.timings, e: l.e, self: l.claim.Identity(), plan: l.plan, relay: l.relay, agent: l.agent, warm: l.warm, began: time.Now()}
}

// step runs and times one step of the launch, unless the launch has already failed.
func (l *launch) step(ctx context.Context, name string, fn func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	hook := l.e.hooks.step
	if hook == nil {
		hook = func(string, bool) error { return nil }
	}
	if err := hook(name, false); err != nil {
		return err
	}
	if l.claim != nil {
		if err := l.claim.Check(); err != nil {
			return err
		}
	}
	end := l.timings.Begin(name)
	err := fn(ctx)
	end()
	if err != nil {
		return err
	}
	return hook(name, true)
}

// wait blocks until done is closed or the launch has failed.
func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *launch) createNetwork(ctx context.Context) error {
	resolvers, err := l.writeResolvConf()
	if err != nil {
		return err
	}
	err = l.step(ctx, "create namespaces", func(ctx context.Context) (err error) {
		l.pair, err = l.e.net.Create(ctx, l.dir)
		return err
	})
	if err != nil {
		return err
	}
	close(l.namespaced)
	// One after the other: two plugins at once would delay the creation of the agent's container,
	// which takes longer, on two processors.
	if err := l.step(ctx, "attach internal network", l.pair.AttachInternal); err != nil {
		return err
	}
	if err := l.step(ctx, "verify internal network", l.pair.VerifyAgent); err != nil {
		return err
	}
	err = l.step(ctx, "attach egress network", func(ctx context.Context) error {
		if err := l.openDestinations(ctx); err != nil {
			return err
		}
		return l.pair.AttachEgress(ctx, resolvers)
	})
	if err != nil {
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
		runtime.LabelID: l.claim.Identity().ID, runtime.LabelOwner: strconv.Itoa(names.Owner(p.Name)),
	}
}
