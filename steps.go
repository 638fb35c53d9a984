package bottle

import (
	"context"
	"errors"
	"sync"
	"time"
)

// undo is a stack of what would take back the steps done so far. Steps that run
// at the same time may push at the same time.
type undo struct {
	mu    sync.Mutex
	stack []func(context.Context) error
}

func (u *undo) push(fn func(context.Context) error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.stack = append(u.stack, fn)
}

// run takes back everything, last made first, on a context that the failure's
// own cancellation does not touch. It goes on past failures and returns them.
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

// begin starts a step and returns what ends it.
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

// Steps returns the steps that have ended, in the order of their ends.
func (t *Timings) Steps() []StepTime {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]StepTime(nil), t.steps...)
}
