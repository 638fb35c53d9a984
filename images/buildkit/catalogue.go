package buildkit

import (
	"context"
	"fmt"
	"sync/atomic"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"
)

// catalogue is a list of containerd's content and snapshots, read once. On startup
// BuildKit looks up each cache entry individually and repeatedly: once per lifetime
// of a daemon, but for every build in this process.
type catalogue struct {
	blobs     map[digest.Digest]content.Info
	snapshots map[string]snapshots.Info
	closed    atomic.Bool // lookups go to containerd
}

func (c Config) catalogue(ctx context.Context, store *containerd.Client) (*catalogue, error) {
	l := &catalogue{blobs: map[digest.Digest]content.Info{}, snapshots: map[string]snapshots.Info{}}
	var g errgroup.Group
	g.Go(func() error {
		err := store.ContentStore().Walk(ctx, func(i content.Info) error {
			l.blobs[i.Digest] = i
			return nil
		})
		if err != nil {
			return fmt.Errorf("list content: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		err := store.SnapshotService(c.Snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			l.snapshots[i.Name] = i
			return nil
		})
		if err != nil {
			return fmt.Errorf("list snapshots: %w", err)
		}
		return nil
	})
	return l, g.Wait()
}

func (l *catalogue) close() { l.closed.Store(true) }

// content returns the store with lookups answered from the catalogue.
func (l *catalogue) content(s content.Store) content.Store { return listedContent{s, l} }

type listedContent struct {
	content.Store
	list *catalogue
}

func (s listedContent) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	if s.list.closed.Load() {
		return s.Store.Info(ctx, d)
	}
	i, ok := s.list.blobs[d]
	if !ok {
		return i, fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	return i, nil
}

// snapshotter returns the snapshotter with lookups answered from the catalogue.
func (l *catalogue) snapshotter(s snapshots.Snapshotter) snapshots.Snapshotter {
	return listedSnapshots{s, l}
}

type listedSnapshots struct {
	snapshots.Snapshotter
	list *catalogue
}

func (s listedSnapshots) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if s.list.closed.Load() {
		return s.Snapshotter.Stat(ctx, key)
	}
	i, ok := s.list.snapshots[key]
	if !ok {
		return i, fmt.Errorf("snapshot %s: %w", key, errdefs.ErrNotFound)
	}
	return i, nil
}
