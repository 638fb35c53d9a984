package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

const (
	baseImage = "docker.io/library/bottle-demo:latest"
	// A separate namespace: buildkitd removes everything that it does not know,
	// including bottle's cache.
	daemonNamespace    = "bench-buildkitd"
	daemonImage        = "docker.io/library/bench-build:latest"
	daemonStartTimeout = 30 * time.Second
)

// daemon is a buildkitd that uses the lab's containerd in its own namespace, with
// a copy of the base image.
type daemon struct {
	dir, addr string
	cmd       *exec.Cmd
	ctrd      *containerd.Client
}

func startDaemon(ctx context.Context, dir string) (_ *daemon, err error) {
	d := &daemon{dir: dir, addr: "unix://" + filepath.Join(dir, "buildkitd.sock")}
	if d.ctrd, err = containerd.New(os.Getenv("CONTAINERD_ADDRESS")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if err := d.copyBase(ctx); err != nil {
		return nil, fmt.Errorf("copy the base image: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, "buildkitd.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }() // the daemon has its own descriptor
	d.cmd = exec.Command("buildkitd", "--addr", d.addr, "--root", filepath.Join(dir, "buildkitd"), "--oci-worker=false",
		"--containerd-worker=true", "--containerd-worker-addr", os.Getenv("CONTAINERD_ADDRESS"),
		"--containerd-worker-namespace", daemonNamespace, "--containerd-worker-net", "host")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.cmd = nil
		return nil, fmt.Errorf("start: %w (scripts/lab up --with-buildkitd)", err)
	}
	for end := time.Now().Add(daemonStartTimeout); ; {
		out, err := d.buildctl(ctx, "debug", "info").CombinedOutput()
		if err == nil {
			return d, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return nil, fmt.Errorf("not responding: %w\n%s", err, out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (d *daemon) copyBase(ctx context.Context) error {
	r, w := io.Pipe()
	go func() {
		from := namespaces.WithNamespace(ctx, os.Getenv("CONTAINERD_NAMESPACE"))
		w.CloseWithError(d.ctrd.Export(from, w, archive.WithImage(d.ctrd.ImageService(), baseImage)))
	}()
	_, err := d.ctrd.Import(d.context(ctx), r)
	r.CloseWithError(err)
	return err
}

func (d *daemon) context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, daemonNamespace)
}

func (d *daemon) buildctl(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "buildctl", append([]string{"--addr", d.addr}, args...)...)
}

// build uses the options that bottle uses with BuildKit.
func (d *daemon) build(ctx context.Context) *exec.Cmd {
	dir := filepath.Join(d.dir, "context")
	return d.buildctl(ctx, "build", "--progress", "plain", "--frontend", "dockerfile.v0", "--local", "context="+dir, "--local", "dockerfile="+dir,
		"--opt", "image-resolve-mode=local", "--metadata-file", d.metadataFile(),
		"--output", "type=image,name="+daemonImage+",unpack=true,oci-mediatypes=true,compression=zstd")
}

func (d *daemon) metadataFile() string { return filepath.Join(d.dir, "metadata.json") }

func (d *daemon) digest([]byte) (string, error) { return metadata(d.metadataFile()) }

// close stops the daemon and removes its namespace.
func (d *daemon) close() error {
	ctx, cancel := context.WithTimeout(d.context(context.Background()), time.Minute)
	defer cancel()
	var errs []error
	try := func(err error) {
		if err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	if d.cmd != nil {
		try(d.cmd.Process.Signal(os.Interrupt))
		_ = d.cmd.Wait() // reports the interrupt as an error
	}
	for _, name := range []string{baseImage, daemonImage} {
		try(d.ctrd.ImageService().Delete(ctx, name))
	}
	manager := d.ctrd.LeasesService()
	list, err := manager.List(ctx)
	try(err)
	for _, l := range list {
		try(manager.Delete(ctx, l))
	}
	// Deleting a lease synchronously collects garbage, so that the namespace is
	// empty when it is removed.
	last, err := manager.Create(ctx, leases.WithRandomID())
	try(err)
	try(manager.Delete(ctx, last, leases.SynchronousDelete))
	try(d.ctrd.NamespaceService().Delete(ctx, daemonNamespace))
	try(d.ctrd.Close())
	return errors.Join(errs...)
}
