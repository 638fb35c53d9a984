package bottle

import (
	"context"
	"errors"
	"sync"
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
