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
func (s *Store) lease(ctx context.Context, purpose string) (_ context.Context, release func(time.Duration, ...leases.DeleteOpt) error, err error) {
	manager := s.ctrd.LeasesService()
	l, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime),
		leases.WithLabels(map[string]string{labelOwner: owner, labelPurpose: purpose}))
	if err != nil {
		return nil, nil, fmt.Errorf("make a lease: %w", err)
	}
	release = func(limit time.Duration, opts ...leases.DeleteOpt) error {
		// What has been cancelled has to be tidied up all the same.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		if err := manager.Delete(ctx, l, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove lease %s: %w", l.ID, err)
		}
		return nil
	}
	return leases.WithLease(ctx, l.ID), release, nil
}

// interruptedTime is how long an interrupted caller waits for what it has made to
// be collected.
const interruptedTime = time.Second

// leased runs fn under a lease that ends with it. After a failure what it has
// made is collected at once, so that a full disk is not left full.
func (s *Store) leased(ctx context.Context, purpose string, fn func(context.Context) error) error {
	outer := ctx
	ctx, release, err := s.lease(ctx, purpose)
	if err != nil {
		return err
	}
	err = fn(ctx)
	switch {
	case err == nil:
		return release(releaseTime)
	case ctx.Err() == nil && errors.Is(kindOf(err), ErrNoSpace):
		s.abort(ctx)
		err = errors.Join(err, release(releaseTime, leases.SynchronousDelete))
		s.sweep(outer)
		return err
	case ctx.Err() == nil:
		return errors.Join(err, release(releaseTime, leases.SynchronousDelete))
	}
	return errors.Join(err, releaseSoon(release, interruptedTime))
}

// releaseSoon removes a lease and has what it kept collected, and waits for that
// no longer than limit: containerd goes on when nobody waits.
func releaseSoon(release func(time.Duration, ...leases.DeleteOpt) error, limit time.Duration) error {
	err := release(limit, leases.SynchronousDelete)
	if errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
		return release(releaseTime)
	}
	return err
}

// abort throws away the half-written blobs of the context's lease. The daemon
// needs some space to note that a lease has gone, and they may have all of it.
func (s *Store) abort(ctx context.Context) {
	id, _ := leases.FromContext(ctx)
	held, err := s.ctrd.LeasesService().ListResources(ctx, leases.Lease{ID: id})
	if err != nil {
		return // then the lease's removal fails too, and tells
	}
	for _, r := range held {
		if r.Type == "ingests" {
			_ = s.ctrd.ContentStore().Abort(ctx, r.ID) // it goes with the lease otherwise
		}
	}
}

// sweep has containerd remove snapshots a second time. The first time the
// snapshotter may have failed to note it, for want of the space that blobs were
// to free a moment later, and it tries again only after the next removal.
func (s *Store) sweep(ctx context.Context) {
	ctx, release, err := s.lease(ctx, "sweep")
	if err != nil {
		return // the disk is as full as it was before
	}
	sn := s.ctrd.SnapshotService(s.snapshotter)
	key := fmt.Sprintf("bottle-sweep-%d", time.Now().UnixNano())
	if _, err := sn.Prepare(ctx, key, ""); err == nil {
		_ = sn.Remove(ctx, key) // else its lease's end removes it
	}
	_ = release(releaseTime, leases.SynchronousDelete) // it expires otherwise
}
