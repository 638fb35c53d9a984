package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/moby/buildkit/client"
	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/internal/imageowner"
)

// buildRemote builds with the buildkitd at Host and imports the image into
// containerd's store, which the daemon need not share.
func (c Config) buildRemote(ctx context.Context, req Request) (_ Result, err error) {
	c.quiet()
	req.buildkitd, req.entitlements = true, []string{"network.host"}
	store, err := imageowner.New(c.Address, c.Owner, func() bool { return false }, nil, containerd.WithDefaultNamespace(c.Namespace))
	if err != nil {
		return Result{}, connectError(c.Address, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	bk, err := client.New(ctx, c.Host)
	if err != nil {
		return Result{}, fmt.Errorf("connect to buildkitd at %s: %w", c.Host, err)
	}
	defer func() { err = errors.Join(err, bk.Close()) }()
	if _, err := bk.Info(ctx); err != nil {
		return Result{}, fmt.Errorf("query buildkitd at %s (BUILDKIT_HOST): %w", c.Host, err)
	}
	if len(req.Names) == 0 {
		return solve(ctx, bk, req, client.ExportEntry{Type: client.ExporterImage, Attrs: map[string]string{"store": "false"}})
	}
	r, w := io.Pipe()
	export := c.exporter(req)
	export.Type, export.Output = client.ExporterOCI, func(map[string]string) (io.WriteCloser, error) { return w, nil }
	delete(export.Attrs, "unpack")
	var res Result
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		res, err = solve(ctx, bk, req, export)
		w.CloseWithError(err) // nil is the end
		return err
	})
	g.Go(func() error {
		err := c.load(ctx, store, r, req.Names)
		r.CloseWithError(err)
		return err
	})
	return res, g.Wait()
}

// load imports the built images.
func (c Config) load(ctx context.Context, store *containerd.Client, archive io.Reader, names []string) error {
	before, err := targets(ctx, store, names)
	if err != nil {
		return err
	}
	list, err := store.Import(ctx, archive)
	if err != nil {
		return fmt.Errorf("import image from buildkitd: %w", err)
	}
	imported := make([]string, len(list))
	for i, img := range list {
		imported[i] = img.Name
	}
	return c.unpack(ctx, store, imported, before)
}
