package plan

import (
	"context"
	"errors"
)

// ErrImageMissing is wrapped if the image is not in containerd's store.
var ErrImageMissing = errors.New("not in containerd's store")

// ImageInfo describes an image in containerd's store.
type ImageInfo struct {
	Ref        string // normalised
	Digest     string
	Platform   string // "linux/amd64"
	User       string
	WorkDir    string
	Env        []string
	Entrypoint []string
	Cmd        []string
	Labels     map[string]string
}

// Host answers Prepare's queries, none of which changes the host. bottle.Engine
// implements it.
type Host interface {
	// Taken returns the names that a new bottle may not have.
	Taken(ctx context.Context) (map[string]bool, error)
	// Image finds an image by its normalised reference; the error wraps
	// ErrImageMissing if there is none.
	Image(ctx context.Context, ref string) (ImageInfo, error)
	// Runtime checks that a task can run under the runtime.
	Runtime(ctx context.Context, name string) error
	// Network describes the networks that a launch would create.
	Network(ctx context.Context) (Network, error)
	// Workspace checks that workspaces of at most size bytes can be created, and returns
	// warnings.
	Workspace(ctx context.Context, size int64) ([]string, error)
	// Prepared returns the name of a bottle that was prepared for runs as the plan's;
	// empty: there is none.
	Prepared(ctx context.Context, p *Plan) (string, error)
}
