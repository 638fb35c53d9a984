package bottle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/egress/inject"
	"github.com/bot-bottle/bottle/injection"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/timing"
	"github.com/bot-bottle/bottle/internal/treecopy"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/workspace"
)

// A fork is a launch whose agent is restored from the memory image of a running bottle, its
// source. Networks and proxy are created as for every bottle, with the source's policy at that
// moment. The source is paused while its memory is written and its workspace is copied.

// MaxForks is how many bottles can be made from one at once.
const MaxForks = 16

// forked is what a launch has of its source.
type forked struct {
	source string
	image  string // directory of the memory image
	state  proxy.State
	saved  chan struct{} // closed when the source is paused and its memory is written
	copied func()        // called when nothing more is copied while the source is paused
}

// Fork makes bottles from a running one: with its processes, files, workspace, policy and
// injected secrets, and each with its own name, network, proxy and log. The source runs on and
// keeps its connections. After an error there is none of them.
func (e *Engine) Fork(ctx context.Context, source string, count int) (_ []*Bottle, err error) {
	if count < 1 || count > MaxForks {
		return nil, fmt.Errorf("invalid number of forks %d: expected 1 to %d", count, MaxForks)
	}
	release, err := e.hold(ctx, source, "fork")
	if err != nil {
		return nil, err
	}
	defer release()
	if err := errors.Join(e.rt.CheckSuspended(source), e.checkRuns(ctx, source, "fork")); err != nil {
		return nil, err
	}
	same, err := e.rt.SameProgram(ctx, source)
	if err == nil && !same {
		err = &hint.Error{
			Err:  fmt.Errorf("cannot fork %s: %w", source, runtime.ErrWrongImage),
			Hint: "gVisor was updated since the bottle was started: start another one",
		}
	}
	if err != nil {
		return nil, err
	}
	launches, err := e.forks(ctx, source, count)
	if err != nil {
		return nil, err
	}
	image := e.rt.MemoryDir(source)
	defer func() {
		// Its pages count as the source's memory as long as they exist.
		undo := context.WithoutCancel(ctx)
		err = errors.Join(err, runtime.RemoveMemory(image), e.rt.ResetMemoryLimit(undo, source))
	}()
	return e.launchForks(ctx, source, launches)
}

// forks returns the launches of a bottle's forks.
func (e *Engine) forks(ctx context.Context, source string, count int) ([]*launch, error) {
	state, err := e.proxies.Load(source)
	if err != nil {
		return nil, err
	}
	p, err := e.forkPlan(ctx, source, state)
	if err != nil {
		return nil, err
	}
	in, err := e.forkInjection(source, state)
	if err != nil {
		return nil, err
	}
	taken, err := e.Taken(ctx)
	if err != nil {
		return nil, err
	}
	var launches []*launch
	for i := 1; len(launches) < count; i++ {
		bare := fmt.Sprintf("%s-f%d", names.Bare(source), i)
		name := names.ID(bare, names.Owner(source))
		if taken[name] || taken[names.Proxy(name)] {
			continue
		}
		if err := names.CheckPinned(bare, nil); err != nil {
			return nil, err
		}
		launches = append(launches, &launch{
			e: e, plan: named(p, name), dir: e.dir(name), timings: &timing.Timings{}, injection: in,
			fork:       &forked{source: source, image: e.rt.MemoryDir(source), state: state},
			namespaced: make(chan struct{}), networked: make(chan struct{}),
		})
	}
	return launches, nil
}

// forkPlan returns what a launch needs to know of the plan of a running bottle.
func (e *Engine) forkPlan(ctx context.Context, source string, state proxy.State) (*plan.Plan, error) {
	labels, err := e.rt.Labels(ctx, source)
	if err != nil {
		return nil, err
	}
	facts, err := e.rt.Facts(ctx, source)
	if err != nil {
		return nil, err
	}
	p := &plan.Plan{
		Pinned: true, Agent: labels[runtime.LabelAgent], Image: labels[runtime.LabelImage], Runtime: labels[runtime.LabelRuntime],
		Manifest: state.Manifest, Bottle: state.Bottle,
	}
	p.Limits.CPUs = facts.Limits.CPUs
	p.Proxy.Kind, p.Proxy.Version = state.Kind, state.Version
	p.Proxy.Image, p.Proxy.Memory, err = e.rt.ProxyFacts(ctx, names.Proxy(source))
	return p, err
}

// forkInjection returns the authority and the secrets of a bottle's proxy, with the same
// placeholders: they are in the memory of its agent. It returns nil if there are none.
func (e *Engine) forkInjection(source string, state proxy.State) (*injection.Injection, error) {
	data, roots, err := e.proxies.LoadSecrets(source, state)
	if data == nil || err != nil {
		return nil, err
	}
	in := &injection.Injection{Roots: roots}
	in.CA, in.Secrets, err = inject.Decode(data)
	return in, err
}

// launchForks launches forks concurrently. The source is paused only after each of them has
// its name, until each has its copy of the workspace.
func (e *Engine) launchForks(ctx context.Context, source string, launches []*launch) ([]*Bottle, error) {
	saved := make(chan struct{})
	var copying sync.WaitGroup
	bottles := make([]*Bottle, len(launches))
	g, gctx := errgroup.WithContext(ctx)
	for i, l := range launches {
		copying.Add(1)
		l.fork.saved, l.fork.copied = saved, sync.OnceFunc(copying.Done)
		g.Go(func() (err error) {
			defer l.fork.copied()
			bottles[i], err = l.run(gctx)
			return err
		})
	}
	g.Go(func() (err error) {
		// The source must never stay paused.
		defer func() { err = errors.Join(err, e.continueSource(context.WithoutCancel(ctx), source)) }()
		if err := e.point("pause source", func() error { return e.rt.Pause(gctx, source) }); err != nil {
			return err
		}
		if err := e.point("save source", func() error { _, err := e.saveMemory(gctx, source); return err }); err != nil {
			return err
		}
		close(saved)
		copying.Wait()
		return nil
	})
	err := g.Wait()
	if err == nil {
		return bottles, nil
	}
	for _, b := range bottles {
		if b == nil {
			continue
		}
		err = errors.Join(err, b.Remove(context.WithoutCancel(ctx)), e.discardFork(b.Name))
	}
	return nil, err
}

// discardFork removes the workspace of a fork that was removed.
func (e *Engine) discardFork(name string) error {
	err := e.work.Discard(context.Background(), name)
	if errors.Is(err, workspace.ErrNotFound) {
		return nil
	}
	return err
}

// continueSource lets a bottle run on, which is paused unless that has failed.
func (e *Engine) continueSource(ctx context.Context, source string) error {
	err := e.rt.Unpause(ctx, source)
	if err == nil {
		return nil
	}
	if paused, perr := e.rt.Paused(ctx, source); perr == nil && !paused {
		return nil
	}
	return err
}

// restoreFork copies what the source's sandbox has on the host, and restores the sandbox.
func (l *launch) restoreFork(ctx context.Context) error {
	if err := wait(ctx, l.fork.saved); err != nil {
		return err
	}
	mounted := false
	err := l.step(ctx, "copy source", func(ctx context.Context) (err error) {
		mounted, err = l.copySource(ctx)
		return err
	})
	l.fork.copied()
	if err != nil {
		return err
	}
	name := l.plan.Name
	if mounted {
		err := l.step(ctx, "mount workspace", func(ctx context.Context) error {
			return l.e.mountWorkspace(ctx, name, l.e.teardown.WorkMount(name))
		})
		if err != nil {
			return err
		}
	}
	// No code of the agent runs before all isolation is verified.
	if err := wait(ctx, l.networked); err != nil {
		return err
	}
	if mounted {
		if err := l.recordFork(ctx); err != nil {
			return err
		}
	}
	return l.step(ctx, "restore agent", func(ctx context.Context) (err error) {
		if err := l.e.sessions.Resumed(name); err != nil {
			return err
		}
		l.agent, err = l.e.rt.CloneAgent(ctx, runtime.CloneConfig{
			Source: l.fork.source, Name: name, NetNS: netns.AgentPath(l.dir), Hostname: l.fork.state.Hostname,
			Paths:  []string{l.e.dir(l.fork.source), l.dir, l.e.stateDir(l.fork.source), l.e.stateDir(name)},
			Labels: l.labels(runtime.RoleAgent),
		}, l.rootfs, l.fork.image)
		return err
	})
}

// guestFiles are files in the state directory of a bottle that its sandbox, or what brings its
// work back, uses.
var guestFiles = []string{guestName, "worktree.json", "worktree.list"}

// copySource copies the files of the source on the host, and its workspace if it has one.
func (l *launch) copySource(ctx context.Context) (mounted bool, err error) {
	source, name := l.fork.source, l.plan.Name
	if l.rootfs, err = l.e.rt.CloneRootFS(ctx, source, name); err != nil {
		return false, err
	}
	l.claim.Own(l.rootfs.Remove)
	if err := treecopy.Dir(session.GuestDir(l.e.dir(source)), session.GuestDir(l.dir), nil); err != nil {
		return false, err
	}
	for _, file := range guestFiles {
		from := filepath.Join(l.e.stateDir(source), file)
		if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		to := filepath.Join(l.e.stateDir(name), file)
		if file == guestName && os.Link(from, to) == nil { // nobody writes to it
			continue
		}
		if err := treecopy.File(from, to); err != nil {
			return false, err
		}
	}
	at := l.e.teardown.WorkMount(source)
	if mounted, err = workspace.Mounted(at); err != nil || !mounted {
		return false, err
	}
	err = l.e.workspaces.Copy(source, at, name)
	if errors.Is(err, workspace.ErrExists) {
		return false, fmt.Errorf("%w: %w", runtime.ErrTaken, err)
	}
	if err == nil {
		l.claim.OwnWorkspace()
	}
	return err == nil, err
}

// recordFork completes the copy of the workspace. From now on it outlives the bottle.
func (l *launch) recordFork(context.Context) error {
	r, err := l.e.workspaces.Load(l.fork.source)
	if err != nil {
		return err
	}
	fork := *r
	fork.Name, fork.Created, fork.Ended, fork.End, fork.Summary = l.plan.Name, time.Now(), time.Time{}, "", nil
	return l.e.workspaces.Save(&fork)
}
