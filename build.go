package bottle

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/images/buildkit"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
)

// DefaultBuildCache bounds what builds keep for the next one, in bytes.
const DefaultBuildCache = 20 << 30

type (
	// BuildRequest is one build.
	BuildRequest = buildkit.Request
	// BuildSecret is a value that a build's steps may read.
	BuildSecret = buildkit.Secret
	// BuildResult tells what was built.
	BuildResult = buildkit.Result
)

// BuildProgress are the ways to show a build's progress.
var BuildProgress = buildkit.Modes

// Build makes an image from a Dockerfile. Names are made whole as docker does.
// It needs containerd and runc, and neither gVisor nor CNI plugins. wait is
// told when another build has to end first.
func Build(ctx context.Context, cfg Config, req BuildRequest, wait func()) (BuildResult, error) {
	for i, name := range req.Names {
		ref, err := imageref.Normalize(name)
		if err != nil {
			return BuildResult{}, &hint.Error{Err: err, Hint: "name it such as registry.example/name:tag"}
		}
		req.Names[i] = ref
	}
	res, err := buildkit.Build(ctx, cfg.builder(wait), req)
	return res, buildHint(err)
}

// PruneBuilds removes what builds have kept, and returns how many bytes that
// freed.
func PruneBuilds(ctx context.Context, cfg Config, wait func()) (int64, error) {
	freed, err := buildkit.Prune(ctx, cfg.builder(wait), true)
	return freed, buildHint(err)
}

// builder is this configuration as builds have it. A containerd namespace's name
// never begins with a dot, so that the folder is no namespace's.
func (c Config) builder(wait func()) buildkit.Config {
	return buildkit.Config{
		Address: c.Address, Namespace: c.Namespace, Snapshotter: c.Snapshotter,
		StateDir: filepath.Join(c.StateDir, ".build"), CacheSize: c.BuildCache, Host: c.BuildkitHost,
		CheckLayer: images.CheckLayer, Unpack: images.Unpacker(c.Namespace, c.Snapshotter), Wait: wait, Log: c.Log,
	}
}

func buildHint(err error) error {
	switch {
	case errors.Is(err, buildkit.ErrNoSpace):
		return &hint.Error{Err: err, Hint: "make room: bottle build --prune removes what builds have kept"}
	case errors.Is(err, buildkit.ErrPermission):
		return &hint.Error{Err: err, Hint: "run bottle as root: sudo bottle …"}
	case errors.Is(err, buildkit.ErrNoContainerd):
		return &hint.Error{Err: err, Hint: "start containerd (systemctl start containerd), or name its socket with --address or CONTAINERD_ADDRESS"}
	}
	return err
}
