package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/image-spec/identity"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func specNetNS(path string) specs.LinuxNamespace {
	return specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path}
}

// bare runs runsc with an existing bundle and no network, which measures the cost
// of the sandbox alone. Its launch includes the exit of its only process and the
// teardown.
type bare struct {
	m      *minimal
	dir    string
	bundle string
}

const bareSnapshot = "bench-bare"

func newBare(ctx context.Context, m *minimal, dir string) (*bare, error) {
	b := &bare{m: m, dir: dir, bundle: filepath.Join(dir, "bundle")}
	rootfs := filepath.Join(b.bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o700); err != nil {
		return nil, err
	}
	ctx = m.context(ctx)
	img, err := m.ctrd.GetImage(ctx, benchImage)
	if err != nil {
		return nil, err
	}
	layers, err := img.RootFS(ctx)
	if err != nil {
		return nil, err
	}
	mounts, err := m.ctrd.SnapshotService("overlayfs").Prepare(ctx, bareSnapshot, identity.ChainID(layers).String(),
		// Otherwise containerd would remove the snapshot as garbage.
		snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "bench"}))
	if err != nil {
		return nil, err
	}
	if err := mount.All(mounts, rootfs); err != nil {
		return nil, errors.Join(err, b.removeSnapshot())
	}
	spec, err := json.Marshal(&specs.Spec{
		Version: "1.1.0",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}}},
	})
	if err != nil {
		return nil, err
	}
	return b, os.WriteFile(filepath.Join(b.bundle, "config.json"), spec, 0o600)
}

func (b *bare) removeSnapshot() error {
	return b.m.ctrd.SnapshotService("overlayfs").Remove(b.m.context(context.Background()), bareSnapshot)
}

// close must be called before the minimal client's close, because it uses that
// client's connection.
func (b *bare) close() {
	root := filepath.Join(b.dir, "root")
	err := errors.Join(
		mount.UnmountAll(filepath.Join(b.bundle, "rootfs"), 0), mount.UnmountAll(filepath.Join(root, "null-netns"), 0),
		b.removeSnapshot())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench: remove the bundle:", err)
	}
}

func (b *bare) round(ctx context.Context, n int) (r round, err error) {
	args := append(runscFlags(filepath.Join(b.dir, "root")), "run", "--bundle", b.bundle, fmt.Sprintf("bench-bare-%d", n))
	start := time.Now()
	out, err := exec.CommandContext(ctx, "runsc", args...).CombinedOutput()
	r.launch = time.Since(start)
	if err != nil {
		return r, fmt.Errorf("runsc run: %w: %s", err, out)
	}
	return r, nil
}
