package images

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
)

// Labels of a lease: its owner, to recognise bottle's leftover leases, and its
// purpose.
const (
	labelOwner   = "bottle.owner"
	labelPurpose = "bottle.purpose"
	owner        = "bottle"
)

const (
	// leaseTime bounds how long the lease of a killed process keeps its objects.
	leaseTime = time.Hour
	// releaseTime bounds the removal of a lease, which includes garbage collection.
	releaseTime = 30 * time.Second
)

// lease protects what is created under the returned context from garbage collection
// until release is called. Without a lease the Transfer service creates its own and
// leaves it for a day when its client disappears.
func (s *Store) lease(ctx context.Context, purpose string) (_ context.Context, release func(time.Duration, ...leases.DeleteOpt) error, err error) {
	manager := s.ctrd.LeasesService()
	l, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(leaseTime),
		leases.WithLabels(map[string]string{labelOwner: owner, labelPurpose: purpose}))
	if err != nil {
		return nil, nil, fmt.Errorf("create lease: %w", err)
	}
	release = func(limit time.Duration, opts ...leases.DeleteOpt) error {
		// Clean up even after cancellation.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		if err := manager.Delete(ctx, l, opts...); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove lease %s: %w", l.ID, err)
		}
		return nil
	}
	return leases.WithLease(ctx, l.ID), release, nil
}

// interruptedTime is how long an interrupted caller waits for garbage collection.
const interruptedTime = time.Second

// leased runs fn under a lease that is removed when fn returns. After a failure
// everything fn created is collected immediately, so that a full disk does not stay
// full.
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

// releaseSoon removes a lease with synchronous garbage collection, but waits at most
// limit: containerd continues in the background.
func releaseSoon(release func(time.Duration, ...leases.DeleteOpt) error, limit time.Duration) error {
	err := release(limit, leases.SynchronousDelete)
	if errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
		return release(releaseTime)
	}
	return err
}

// abort removes the partial blobs of the context's lease. The daemon needs some disk
// space to record the lease's removal, and partial blobs may occupy all of it.
func (s *Store) abort(ctx context.Context) {
	id, _ := leases.FromContext(ctx)
	held, err := s.ctrd.LeasesService().ListResources(ctx, leases.Lease{ID: id})
	if err != nil {
		return // the lease's removal fails too and reports the error
	}
	for _, r := range held {
		if r.Type == "ingests" {
			_ = s.ctrd.ContentStore().Abort(ctx, r.ID) // otherwise removed with the lease
		}
	}
}

// sweep makes containerd collect snapshots a second time. The first time the
// snapshotter may have failed to record the removal for lack of disk space, which
// blobs freed only later; it retries only on the next removal.
func (s *Store) sweep(ctx context.Context) {
	ctx, release, err := s.lease(ctx, "sweep")
	if err != nil {
		return // the disk stays as full as before
	}
	sn := s.ctrd.SnapshotService(s.snapshotter)
	key := fmt.Sprintf("bottle-sweep-%d", time.Now().UnixNano())
	if _, err := sn.Prepare(ctx, key, ""); err == nil {
		_ = sn.Remove(ctx, key) // otherwise removed with its lease
	}
	_ = release(releaseTime, leases.SynchronousDelete) // otherwise it expires
}
