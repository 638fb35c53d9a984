package bottle

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/runtime"
)

// Waits before a proxy that keeps ending is started again.
const (
	restartFirst = time.Second
	restartMost  = 30 * time.Second
	// restartCalm is how long a proxy must have run to be well again.
	restartCalm = time.Minute
)

// WatchProxy starts a bottle's proxy again whenever it ends: at once the first
// time, later if it keeps ending. The policy is in force before the proxy listens,
// as it reads the same files again, and its namespace's packet filter stands
// meanwhile: without a proxy the agent reaches nothing. It returns when ctx ends
// or the bottle is gone or being removed. restarted is told of each time, with
// what kept it from running.
//
// Everybody who is attached to a bottle may watch: a lock decides who acts. When
// nobody is, the proxy stays down, and with it the agent's way out, until a
// session begins.
func (e *Engine) WatchProxy(ctx context.Context, name string, restarted func(error)) {
	pause := time.Duration(0)
	for {
		began := time.Now()
		if err := e.rt.WaitTask(ctx, names.Proxy(name)); err != nil {
			e.log.Info("watch proxy", "bottle", name, "error", err)
			pause = max(pause, restartFirst) // containerd does not answer
		}
		if time.Since(began) > restartCalm {
			pause = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		done, err := e.restartProxy(ctx, name)
		if errors.Is(err, ErrNotRunning) || ctx.Err() != nil {
			return
		}
		if done || err != nil {
			restarted(err)
		}
		pause = min(max(2*pause, restartFirst), restartMost)
	}
}

// restartProxy starts the proxy unless it runs. The error wraps ErrNotRunning
// when the bottle is gone or going.
func (e *Engine) restartProxy(ctx context.Context, name string) (bool, error) {
	unlock, err := e.proxyLock(name)
	if err != nil {
		return false, err
	}
	defer unlock()
	if e.going(name) {
		return false, fmt.Errorf("start the proxy of %s: %w", name, ErrNotRunning)
	}
	task, err := e.rt.RecreateProxy(ctx, names.Proxy(name), e.cfg.Program, e.proxyLog(name))
	if task == nil {
		return false, err
	}
	if err := e.startProxy(ctx, name, task); err != nil {
		return false, fmt.Errorf("start the proxy of %s again: %w", name, err)
	}
	e.log.Info("proxy started again", "bottle", name)
	return true, nil
}

// startProxy returns when the proxy's health endpoint has answered.
func (e *Engine) startProxy(ctx context.Context, name string, task *runtime.Task) error {
	log := e.proxyLog(name)
	watch, err := watchFile(log)
	if err != nil {
		return err
	}
	defer func() { _ = watch.Close() }() // nothing was written by it
	if err := task.Start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	client := e.proxyClient(name)
	defer client.CloseIdleConnections()
	// A proxy says on its log that it has started; asking then, and not in
	// rounds, costs neither time nor sleep. The ticker is for a proxy that
	// speaks before it listens.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-watch.Events:
		case <-tick.C:
		case <-task.Exited():
			return fmt.Errorf("the proxy ended at once%s", e.lastWords(ctx, name))
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err()
			}
			return fmt.Errorf("the proxy's health endpoint has not answered for %s%s", proxyTimeout, e.lastWords(ctx, name))
		}
		if healthy(ctx, client) {
			return nil
		}
	}
}
