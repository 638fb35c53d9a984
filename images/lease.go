package images

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Labels of a lease: whose it is, so that a left one can be told from others',
// and what it is for.
const (
	labelOwner   = "bottle.owner"
	labelPurpose = "bottle.purpose"
	owner        = "bottle"
)

const (
	// leaseTime bounds how long a lease that a killed bottle left keeps what it
	// was made for.
	leaseTime = time.Hour
	// releaseTime bounds a lease's removal, which also collects garbage.
	releaseTime = 30 * time.Second
)

// lease keeps what is made under the returned context from being collected
// until release is called. The Transfer service makes a lease of its own where
// it is given none, and leaves it for a day when its caller goes away.
func (s *Store) lease(ctx context.Context, purpose string) (_ context.Context, release func(...leases.DeleteOpt) error, err error) {
	manager := s.ctrd.LeasesService()
	l, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime),
		leases.WithLabels(map[string]string{labelOwner: owner, labelPurpose: purpose}))
	if err != nil {
		return nil, nil, fmt.Errorf("make a lease: %w", err)
	}
	release = func(opts ...leases.DeleteOpt) error {
		// What has been cancelled has to be tidied up all the same.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
		defer cancel()
		if err := manager.Delete(ctx, l, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove lease %s: %w", l.ID, err)
		}
		return nil
	}
	return leases.WithLease(ctx, l.ID), release, nil
}

// leased runs fn under a lease that ends with it. After a failure what it has
// made is collected at once, so that a full disk is not left full.
func (s *Store) leased(ctx context.Context, purpose string, fn func(context.Context) error) error {
	ctx, release, err := s.lease(ctx, purpose)
	if err != nil {
		return err
	}
	if err := fn(ctx); err != nil {
		if ctx.Err() != nil {
			return errors.Join(err, release())
		}
		return errors.Join(err, release(leases.SynchronousDelete))
	}
	return release()
}
