package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/client"
	"golang.org/x/sync/errgroup"
)

// buildRemote builds with the buildkitd at Host and imports the image into
// containerd's store, which the daemon need not share.
func (c Config) buildRemote(ctx context.Context, req Request) (_ Result, err error) {
	c.quiet()
	req.buildkitd = true
	store, err := containerd.New(c.Address, containerd.WithDefaultNamespace(c.Namespace))
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

// load imports the built images. If one cannot be unpacked, the previous names are
// restored.
func (c Config) load(ctx context.Context, store *containerd.Client, archive io.Reader, names []string) error {
	service := store.ImageService()
	before := map[string]images.Image{}
	for _, name := range names {
		img, err := service.Get(ctx, name)
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("look up %s: %w", name, err)
		}
		before[name] = img
	}
	list, err := store.Import(ctx, archive)
	if err != nil {
		return fmt.Errorf("import image from buildkitd: %w", err)
	}
	for _, img := range list {
		err = errors.Join(err, c.Unpack(ctx, store, img.Name))
	}
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	for _, img := range list {
		if was := before[img.Name]; was.Name != "" {
			_, berr := service.Update(ctx, was, "target")
			err = errors.Join(err, berr)
			continue
		}
		err = errors.Join(err, service.Delete(ctx, img.Name, images.SynchronousDelete()))
	}
	return fmt.Errorf("unpack image from buildkitd: %w", err)
}
