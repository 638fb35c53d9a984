package buildkit

import (
	"context"
	"fmt"
	"time"

	"github.com/moby/buildkit/client"
)

// limit prunes the cache to its size limit. BuildKit would do so a minute after a
// build, when this process has exited. A build that executed nothing has not changed
// the cache.
func (s *session) limit(ctx context.Context, executed bool) error {
	policy := s.cfg.policy()
	if len(policy) == 0 || !executed && s.state.limit() == s.cfg.CacheSize {
		return nil
	}
	if _, err := s.prune(ctx, policy...); err != nil {
		return err
	}
	return s.state.setLimit(s.cfg.CacheSize)
}

// removeLeftovers removes the file systems of a killed build's unfinished steps, which
// are not part of the cache.
func (s *session) removeLeftovers(ctx context.Context) error {
	if s.state.crashed.IsZero() {
		return nil
	}
	used, err := s.worker.DiskUsage(ctx, client.DiskUsageInfo{})
	if err != nil {
		return err
	}
	var filters []string
	for _, u := range used {
		if u.Mutable && u.RecordType == client.UsageRecordTypeRegular && u.CreatedAt.After(s.state.crashed) {
			filters = append(filters, "id=="+u.ID)
		}
	}
	if len(filters) == 0 {
		return s.worker.GarbageCollect(ctx)
	}
	_, err = s.prune(ctx, client.PruneInfo{All: true, Filter: filters})
	return err
}

// discardFailed removes unreferenced objects after a failed build, such as the file
// system of the failed step, which containerd would collect only later. If a disk was
// full, it also removes everything the build added to the cache: otherwise the next
// build would find the disk full again.
func (s *session) discardFailed(ctx context.Context, start time.Time, diskFull bool) error {
	if s.cfg.reachable() != nil {
		s.state.unclean = true // containerd is gone: the next build cleans up
		return nil
	}
	ctx, cancel := context.WithTimeout(withNamespace(context.WithoutCancel(ctx), s.cfg.Namespace), closeTime)
	defer cancel()
	added, err := s.addedSince(ctx, start)
	if err != nil {
		return err
	}
	if !diskFull {
		return s.worker.GarbageCollect(ctx)
	}
	// The context may have been added to an earlier build's copy.
	filters := []string{"type==" + string(client.UsageRecordTypeLocalSource)}
	for _, id := range added {
		filters = append(filters, "id=="+id)
	}
	_, err = s.prune(ctx, client.PruneInfo{All: true, Filter: filters})
	return err
}

// inUseTime bounds the wait until a failed build's cache entries are no longer in use,
// and inUsePoll is the polling interval.
const (
	inUseTime = 5 * time.Second
	inUsePoll = 20 * time.Millisecond
)

// addedSince returns the cache entries created after start, once none of them is in
// use: BuildKit releases a failed build's entries after it has responded. Entries
// that stay in use are left to the next build.
func (s *session) addedSince(ctx context.Context, start time.Time) ([]string, error) {
	for end := time.Now().Add(inUseTime); ; time.Sleep(inUsePoll) {
		used, err := s.worker.DiskUsage(ctx, client.DiskUsageInfo{})
		if err != nil {
			return nil, fmt.Errorf("list build cache: %w", err)
		}
		var ids []string
		busy := false
		for _, u := range used {
			if u.CreatedAt.After(start) {
				ids = append(ids, u.ID)
				busy = busy || u.InUse
			}
		}
		if !busy || time.Now().After(end) {
			s.state.unclean = busy
			return ids, nil
		}
	}
}

func (s *session) prune(ctx context.Context, policy ...client.PruneInfo) (freed int64, err error) {
	removed := make(chan client.UsageInfo)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for u := range removed {
			freed += u.Size
		}
	}()
	err = s.worker.Prune(ctx, removed, policy...)
	close(removed)
	<-done
	if err != nil {
		return freed, fmt.Errorf("prune build cache: %w", err)
	}
	return freed, nil
}
