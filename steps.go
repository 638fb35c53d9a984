package bottle

import (
	"context"
	"errors"
	"sync"
	"time"
)

// undo is a stack of functions that undo the steps done so far. Concurrent steps may
// push concurrently.
type undo struct {
	mu    sync.Mutex
	stack []func(context.Context) error
}

func (u *undo) push(fn func(context.Context) error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stack = append(u.stack, fn)
}

// run undoes everything in reverse order, on a detached context. It continues after
// errors and returns all of them.
func (u *undo) run(ctx context.Context) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	u.mu.Lock()
	defer u.mu.Unlock()
	var errs []error
	for i := len(u.stack) - 1; i >= 0; i-- {
		errs = append(errs, u.stack[i](ctx))
	}
	u.stack = nil
	return errors.Join(errs...)
}

// StepTime is how long one step took. Steps may overlap.
type StepTime struct {
	Step  string        `json:"step"`
	Begin time.Duration `json:"begin_ns"` // since the first step
	Took  time.Duration `json:"took_ns"`
}

// Timings collects step times; its zero value is ready to use.
type Timings struct {
	mu    sync.Mutex
	start time.Time
	steps []StepTime
}

// begin starts a step and returns the function that ends it.
func (t *Timings) begin(step string) (end func()) {
	now := time.Now()
	t.mu.Lock()
	if t.start.IsZero() {
		t.start = now
	}
	offset := now.Sub(t.start)
	t.mu.Unlock()
	return func() {
		took := time.Since(now)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.steps = append(t.steps, StepTime{Step: step, Begin: offset, Took: took})
	}
}

// Steps returns the finished steps in the order in which they ended.
func (t *Timings) Steps() []StepTime {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]StepTime(nil), t.steps...)
}
