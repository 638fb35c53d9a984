package buildkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/tonistiigi/fsutil"

	"github.com/bot-bottle/bottle/internal/asuser"
	"github.com/bot-bottle/bottle/internal/caller"
)

// inputs are what one build reads on its caller's behalf, with the caller's rights.
type inputs struct {
	req  Request
	pool *asuser.Pool

	cancel context.CancelFunc // of the build

	mu     sync.Mutex
	denied []string // paths that failed the build because the caller may not read them
	failed error    // the first failure to read a file
	asked  []string // registry hosts that required credentials, in order
}

// readers is the number of threads that read files; BuildKit sends four at a time.
const readers = 4

func newInputs(req Request) (*inputs, error) {
	pool, err := asuser.NewPool(req.Caller, readers)
	if err != nil {
		return nil, err
	}
	return &inputs{req: req, pool: pool, cancel: func() {}}, nil
}

func (in *inputs) close() { in.pool.Close() }

// deny records a path if err is a lack of permission, and returns err.
func (in *inputs) deny(path string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if !slices.Contains(in.denied, path) {
		in.denied = append(in.denied, path)
	}
	return unreadable(path)
}

// fail cancels the build because a file cannot be read. BuildKit's sender has no way to
// report that to the receiver.
func (in *inputs) fail(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.failed == nil {
		in.failed = err
	}
	in.cancel()
}

func unreadable(path string) error { return fmt.Errorf("%w: %s", ErrUnreadable, path) }

// explain replaces BuildKit's account of an error by the cause that is known here:
// gRPC transports only text.
func (in *inputs) explain(err error) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if len(in.denied) > 0 {
		return fmt.Errorf("read build context: %w", unreadable(strings.Join(in.denied, ", ")))
	}
	if in.failed != nil {
		return fmt.Errorf("read build context: %w", in.failed)
	}
	return registryError(err, in.asked)
}

// contexts returns the directories that the build may read, and sets the attributes
// that refer to them or to remote contexts.
func (in *inputs) contexts(attrs map[string]string) (map[string]fsutil.FS, error) {
	r, mounts := in.req, map[string]fsutil.FS{}
	for name, from := range r.Contexts {
		if remote(from) || strings.HasPrefix(from, "docker-image://") {
			attrs["context:"+name] = from
			continue
		}
		mount := "named-" + name // must not collide with "context" and "dockerfile"
		attrs["context:"+name] = "local:" + mount
		if err := in.mount(mounts, mount, from); err != nil {
			return nil, fmt.Errorf("read build context %s: %w", name, err)
		}
	}
	if remote(r.Context) {
		attrs["context"] = r.Context
	}
	if (remote(r.Context) || r.Tar != nil) && r.Text == nil {
		attrs["filename"] = r.Dockerfile // part of the context
		return mounts, nil
	}
	text := r.Text
	if text != nil {
		attrs["filename"] = "Dockerfile"
		mounts["dockerfile"] = oneFile("Dockerfile", text)
	} else {
		var err error
		if text, err = in.readFile(r.Dockerfile, maxDockerfile); err != nil {
			return nil, fmt.Errorf("read Dockerfile: %w", err)
		}
		attrs["filename"] = filepath.Base(r.Dockerfile)
		// The complete directory, as it may also contain an ignore file.
		if err := in.mount(mounts, "dockerfile", filepath.Dir(r.Dockerfile)); err != nil {
			return nil, fmt.Errorf("read the Dockerfile's directory: %w", err)
		}
	}
	if builtinFrontend(text, r.Args) {
		attrs["cmdline"] = "built-in"
	}
	switch {
	case remote(r.Context):
	case r.Context == "":
		mounts["context"] = oneFile(".dockerignore", []byte("*\n"))
	default:
		if err := in.mount(mounts, "context", r.Context); err != nil {
			return nil, fmt.Errorf("read build context: %w", err)
		}
	}
	return mounts, nil
}

// maxDockerfile bounds the size of a Dockerfile, in bytes.
const maxDockerfile = 4 << 20

// readFile reads a regular file of limited size.
func (in *inputs) readFile(path string, limit int64) (data []byte, err error) {
	err = in.pool.Do(func() error {
		f, err := caller.OpenRegular(path)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if fi.Size() > limit {
			return fmt.Errorf("%s is larger than %d bytes", path, limit)
		}
		data, err = io.ReadAll(io.LimitReader(f, limit))
		return err
	})
	if errors.Is(err, fs.ErrPermission) {
		return nil, unreadable(path)
	}
	return data, err
}

// secretStore reports missing secret files before the build starts.
func (in *inputs) secretStore() (secrets.SecretStore, error) {
	store := secretValues{in: in, byID: map[string]Secret{}}
	for _, s := range in.req.Secrets {
		if s.ID == "" {
			return nil, errors.New("missing id of a build secret")
		}
		store.byID[s.ID] = s
		if _, err := store.value(s); err != nil {
			return nil, err
		}
	}
	return store, nil
}

type secretValues struct {
	in   *inputs
	byID map[string]Secret
}

// GetSecret is called when a step mounts a secret.
func (v secretValues) GetSecret(_ context.Context, id string) ([]byte, error) {
	s, ok := v.byID[id]
	if !ok {
		return nil, secrets.ErrNotFound
	}
	return v.value(s)
}

func (v secretValues) value(s Secret) ([]byte, error) {
	if s.Value != nil {
		return bytes.Clone(s.Value()), nil
	}
	data, err := v.in.readFile(s.File, secretsprovider.MaxSecretSize)
	if err != nil {
		return nil, fmt.Errorf("read build secret %s: %w", s.ID, err)
	}
	return data, nil
}
