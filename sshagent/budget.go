package sshagent

import (
	"context"

	"golang.org/x/time/rate"
)

// Requests are answered on the host, outside the limits of the sandbox, so each
// bottle has a budget for them. A request that exceeds the budget waits. The budget
// is in units: a login by OpenSSH lists the keys, binds the session and signs, which
// takes 25 units, so the budget permits a burst of 100 logins and 10 logins per second
// after that. A signature with RSA-4096, the most expensive kind in common use,
// takes about 7 ms of CPU time: repeated without pause it takes a tenth of a CPU.
const (
	unitsPerSecond = 250
	maxUnits       = 2500

	signUnits  = 20
	bindUnits  = 4 // a session-bind may verify a signature
	otherUnits = 1
)

// budget limits the work that a bottle's agent does.
type budget struct {
	units   *rate.Limiter
	signing chan struct{} // holds a value while a signature is being created
}

func newBudget() *budget {
	return &budget{units: rate.NewLimiter(unitsPerSecond, maxUnits), signing: make(chan struct{}, 1)}
}

// spend waits until the budget permits a request of the given type.
func (b *budget) spend(ctx context.Context, request byte) error {
	units := otherUnits
	switch request {
	case msgSignRequest:
		units = signUnits
	case msgExtension:
		units = bindUnits
	}
	return b.units.WaitN(ctx, units)
}

// lock waits until no other signature is being created.
func (b *budget) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case b.signing <- struct{}{}:
		return func() { <-b.signing }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
