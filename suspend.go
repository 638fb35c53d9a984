package bottle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/timing"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
)

// A bottle is suspended in an order in which a process that is killed at any point leaves
// the agent's state in one place: the processes are paused, their memory is written, and a
// record says that the image is complete. Only then the sandbox is killed, still paused.
// Without the record, resume lets the paused processes continue; with it, it uses the image.
// A bottle is resumed in the opposite order: the record is removed when the processes run
// again. All of it holds the lock on the bottle's removal.

// ErrNoHeldSession is wrapped if the agent of a bottle is not a process that PID 1 holds.
var ErrNoHeldSession = errors.New("its session ends with the command that has started it")

// IsSuspended reports whether a bottle is suspended.
func (e *Engine) IsSuspended(name string) bool { return e.rt.Suspended(name) }

// hold waits for the lock on the removal of the bottle that has a name, and checks that its
// runtime has memory images and that its session is a held one, which is part of them.
func (e *Engine) hold(ctx context.Context, name, what string) (release func(), err error) {
	self, err := e.teardown.Identify(name)
	if err != nil {
		return nil, err
	}
	lock, err := e.teardown.Hold(ctx, self)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock()
		}
	}()
	switch kind, err := e.rt.RuntimeOf(ctx, name); {
	case err != nil:
		return nil, err
	case kind != runtime.RuntimeRunsc:
		return nil, &hint.Error{Err: fmt.Errorf("cannot %s %s: %w", what, name, runtime.ErrNoMemoryImage), Hint: "run the agent with --runtime runsc"}
	case !e.sessions.Held(name):
		return nil, &hint.Error{Err: fmt.Errorf("cannot %s %s: %w", what, name, ErrNoHeldSession), Hint: "run the agent with -d or --keep"}
	}
	return lock, nil
}

// checkRuns checks that the processes of a bottle run. Its held session may have ended just
// now, which is a state like any other. It is not asked: that would take as long as the rest.
func (e *Engine) checkRuns(ctx context.Context, name, what string) error {
	if running, err := e.rt.RunningOnHost(ctx, name); running || err != nil {
		return err
	}
	running, err := e.Running(ctx, name)
	if err != nil {
		return err
	}
	paused, err := e.rt.Paused(ctx, name)
	if err != nil {
		return err
	}
	if !running || paused {
		return &hint.Error{Err: fmt.Errorf("cannot %s %s: %w", what, name, runtime.ErrNotRunning), Hint: "bottle list -a shows its state"}
	}
	return nil
}

// point calls the test's hook, as a launch does before and after each of its steps.
func (e *Engine) point(step string, fn func() error) error {
	hook := e.hooks.step
	if hook == nil {
		return fn()
	}
	if err := hook(step, false); err != nil {
		return err
	}
	if err := fn(); err != nil {
		return err
	}
	return hook(step, true)
}

// Suspend writes the memory of a bottle's processes to an image on tmpfs and ends its tasks.
// Resume lets it continue. Its held session, its files and its policy are kept; sessions of
// Exec end. After an error the bottle runs on.
func (e *Engine) Suspend(ctx context.Context, name string) (size int64, err error) {
	release, err := e.hold(ctx, name, "suspend")
	if err != nil {
		return 0, err
	}
	defer release()
	if err := e.rt.CheckSuspended(name); err != nil {
		return 0, err
	}
	if err := e.checkRuns(ctx, name, "suspend"); err != nil {
		return 0, err
	}
	defer func() { err = auditEnd(e.cfg.Audit, name, "suspended", err) }()
	if size, err = e.freeze(ctx, name); err != nil {
		return 0, err
	}
	// From here on the image is what the bottle continues from.
	ctx = context.WithoutCancel(ctx)
	err = e.point("end sandbox", func() error { return e.rt.EndSandbox(ctx, name) })
	return size, errors.Join(err, e.waitWatcher(ctx, name))
}

// freeze pauses a bottle, writes its memory image, and records it. After an error the bottle
// runs on.
func (e *Engine) freeze(ctx context.Context, name string) (size int64, err error) {
	defer func() {
		if err == nil {
			return
		}
		rerr := os.Remove(e.rt.SuspendedFile(name))
		if errors.Is(rerr, fs.ErrNotExist) {
			rerr = nil
		}
		err = errors.Join(err, rerr, e.unfreeze(context.WithoutCancel(ctx), name))
	}()
	key := ""
	err = e.point("pause", func() (err error) {
		if key, err = e.rt.MemoryKey(ctx, name, true); err != nil {
			return err
		}
		return e.rt.Pause(ctx, name)
	})
	if err != nil {
		return 0, err
	}
	err = e.point("save memory", func() error { size, err = e.saveMemory(ctx, name); return err })
	if err != nil {
		return 0, err
	}
	err = e.point("record memory", func() error {
		return e.proxies.Suspend(ctx, name, func() error {
			data, err := json.Marshal(runtime.Suspension{Key: key, Size: size})
			if err != nil {
				return err
			}
			return atomicfile.Write(e.rt.SuspendedFile(name), data, 0o600)
		})
	})
	return size, err
}

// saveMemory writes the memory image of a paused bottle.
func (e *Engine) saveMemory(ctx context.Context, name string) (size int64, err error) {
	dir := e.rt.MemoryDir(name)
	if err := runtime.RemoveMemory(dir); err != nil { // left by a process that was killed
		return 0, err
	}
	if err := e.rt.MountMemory(ctx, name, dir); err != nil {
		if errors.As(err, new(*runtime.SpaceError)) {
			err = &hint.Error{Err: err, Hint: "stop bottles or other programs, and try again"}
		}
		return 0, err
	}
	if size, err = e.rt.SaveMemory(ctx, name, dir); err == nil {
		err = ctx.Err()
	}
	return size, err
}

// unfreeze removes what a suspension that did not succeed has left, and lets the bottle run
// on.
func (e *Engine) unfreeze(ctx context.Context, name string) error {
	// The image is a part of the sandbox's memory as long as it exists.
	err := errors.Join(runtime.RemoveMemory(e.rt.MemoryDir(name)), e.rt.ResetMemoryLimit(ctx, name))
	paused, perr := e.rt.Paused(ctx, name)
	if perr == nil && paused {
		perr = e.rt.Unpause(ctx, name)
	}
	if perr == nil {
		_, _, perr = e.proxies.Restart(ctx, name)
	}
	return errors.Join(err, perr)
}

// watcherTime bounds the wait for the watcher of a bottle to notice that it was suspended.
const watcherTime = 10 * time.Second

// waitWatcher waits until the process that watches a bottle has ended: another will be its
// watcher when it is resumed.
func (e *Engine) waitWatcher(ctx context.Context, name string) error {
	for end := time.Now().Add(watcherTime); ; {
		pid := e.sessions.Watcher(name)
		switch {
		case pid == 0:
			return nil
		case time.Now().After(end):
			return fmt.Errorf("the process %d, which watches %s, does not end", pid, name)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Resume lets a suspended bottle continue, with the same name, policy and injected secrets.
// Of a bottle that was left paused by a suspension or a fork that was killed, the processes
// continue. Keys of ssh are lost: only the process that has launched a bottle has them.
func (e *Engine) Resume(ctx context.Context, name string) (_ *Bottle, err error) {
	release, err := e.hold(ctx, name, "resume")
	if err != nil {
		return nil, err
	}
	defer release()
	self, err := e.teardown.Identify(name)
	if err != nil {
		return nil, err
	}
	b := &Bottle{Name: name, Timings: &timing.Timings{}, e: e, self: self, plan: &plan.Plan{Name: name}}
	running, err := e.rt.RunningOnHost(ctx, name)
	if err != nil {
		return nil, err
	}
	if !e.rt.Suspended(name) || running { // its process was killed before the record was written, or removed
		return b, e.continuePaused(ctx, name, running)
	}
	key, err := e.rt.MemoryKey(ctx, name, false)
	if err != nil {
		return nil, err
	}
	s, err := e.rt.Suspension(name)
	if err == nil && s.Key != key {
		err = &hint.Error{Err: fmt.Errorf("cannot resume %s: %w", name, runtime.ErrWrongImage), Hint: "install the version that was used before, or remove the bottle: bottle rm -f " + name}
	}
	if err != nil {
		return nil, err
	}
	defer func() { err = auditEnd(e.cfg.Audit, name, "resumed", err) }()
	return b, e.thaw(ctx, name)
}

// continuePaused lets the processes of a bottle continue that is paused, or whose suspension
// was over before its record was removed.
func (e *Engine) continuePaused(ctx context.Context, name string, running bool) error {
	suspended := e.rt.Suspended(name)
	paused, err := e.rt.Paused(ctx, name)
	if err != nil {
		return err
	}
	_, left := os.Lstat(e.rt.MemoryDir(name)) // by a process that was killed when the bottle ran again
	if !suspended && !paused && left != nil {
		return &hint.Error{Err: fmt.Errorf("%s is not suspended", name), Hint: "bottle list -a shows its state"}
	}
	if running && suspended {
		return e.endSuspension(name)
	}
	return e.unfreeze(ctx, name)
}

// thaw restores the sandbox of a suspended bottle. After an error it is still suspended.
func (e *Engine) thaw(ctx context.Context, name string) (err error) {
	complete, err := e.teardown.Relaunch(name)
	if err != nil {
		return err
	}
	// What is begun is ended: a half-restored sandbox would be of no use.
	ctx = context.WithoutCancel(ctx)
	defer func() {
		if err != nil {
			stop := e.proxies.Suspend(ctx, name, func() error { return nil })
			err = errors.Join(err, stop, complete())
		}
	}()
	// A killed resume may have left a task.
	err = e.point("remove sandbox", func() error { return e.rt.EndSandbox(ctx, name) })
	if err != nil {
		return err
	}
	err = e.point("reopen network", func() error {
		if err := e.net.Refresh(ctx); err != nil {
			return err
		}
		_, err := e.net.Reopen(ctx, e.dir(name))
		return err
	})
	if err != nil {
		return err
	}
	// No code of the agent runs before the proxy is healthy and the network is verified.
	if err := e.point("resume proxy", func() error { return e.proxies.Resume(ctx, name) }); err != nil {
		return err
	}
	err = e.point("restore sandbox", func() error {
		if err := e.sessions.Resumed(name); err != nil {
			return err
		}
		_, err := e.rt.RestoreSandbox(ctx, name, e.rt.MemoryDir(name))
		return err
	})
	if err != nil {
		return err
	}
	return e.point("remove memory", func() error {
		return errors.Join(complete(), e.endSuspension(name))
	})
}

// endSuspension removes the record of a suspension and then its image, which is no longer
// needed.
func (e *Engine) endSuspension(name string) error {
	if err := os.Remove(e.rt.SuspendedFile(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("end suspension of %s: %w", name, err)
	}
	return runtime.RemoveMemory(e.rt.MemoryDir(name))
}

// dropSuspended ends a suspended bottle: its memory image is removed, and its session counts
// as killed.
func (e *Engine) dropSuspended(ctx context.Context, name string) (err error) {
	self, err := e.teardown.Identify(name)
	if err != nil {
		return err
	}
	release, err := e.teardown.Hold(ctx, self)
	if err != nil {
		return err
	}
	defer release()
	if !e.rt.Suspended(name) { // resumed meanwhile
		return nil
	}
	defer func() { err = auditEnd(e.cfg.Audit, name, "stopped", err) }()
	if err := e.rt.EndSandbox(ctx, name); err != nil {
		return err
	}
	if err := e.endSuspension(name); err != nil {
		return err
	}
	_, err = e.sessions.State(ctx, name) // stores that it was killed
	return err
}

// LostBySuspension describes what a bottle does not have any more after it was suspended; it
// is empty for most.
func (e *Engine) LostBySuspension(name string) string {
	if _, err := os.Lstat(e.proxies.SSHLogFile(name)); err != nil {
		return ""
	}
	return "its ssh keys, which only the process had that launched it: logins over ssh fail from now on"
}
