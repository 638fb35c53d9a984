package images_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/snapshots"
)

// stored collects garbage and then lists everything in the namespace: names, blobs,
// partial blobs, snapshots and leases.
func stored(ctx context.Context, t *testing.T, c *containerd.Client) []string {
	t.Helper()
	collect(ctx, t, c)
	return listed(ctx, t, c)
}

// collect makes containerd remove unreferenced objects.
func collect(ctx context.Context, t *testing.T, c *containerd.Client) {
	t.Helper()
	l, err := c.LeasesService().Create(ctx, leases.WithRandomID())
	if err == nil {
		err = c.LeasesService().Delete(ctx, l, leases.SynchronousDelete)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func listed(ctx context.Context, t *testing.T, c *containerd.Client) []string {
	t.Helper()
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	names, err := c.ImageService().List(ctx)
	must(t, err)
	for _, i := range names {
		add("name %s of %s", i.Name, i.Target.Digest)
	}
	must(t, c.ContentStore().Walk(ctx, func(i content.Info) error { add("blob %s", i.Digest); return nil }))
	partial, err := c.ContentStore().ListStatuses(ctx)
	must(t, err)
	for _, s := range partial {
		add("partial blob %s", s.Ref)
	}
	must(t, c.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		add("snapshot %s, %s", i.Name, i.Kind)
		return nil
	}))
	all, err := c.LeasesService().List(ctx)
	must(t, err)
	for _, l := range all {
		add("lease %s %v", l.ID, l.Labels)
	}
	slices.Sort(out)
	return out
}

// sameStore fails the test if the namespace's content differs from before. The
// daemon may take up to limit to clean up an interrupted call.
func sameStore(ctx context.Context, t *testing.T, c *containerd.Client, before []string, limit time.Duration) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		now := listed(ctx, t, c)
		if slices.Equal(before, now) {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the store has changed:\n%s", difference(before, now))
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func difference(before, after []string) string {
	var out []string
	for _, l := range after {
		if !slices.Contains(before, l) {
			out = append(out, "+ "+l)
		}
	}
	for _, l := range before {
		if !slices.Contains(after, l) {
			out = append(out, "- "+l)
		}
	}
	return strings.Join(out, "\n")
}
