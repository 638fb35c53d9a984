package buildkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"
)

// solve runs a build and shows its progress.
func solve(ctx context.Context, c *client.Client, req Request, export client.ExportEntry) (Result, error) {
	opt, err := req.solveOpt()
	if err != nil {
		return Result{}, err
	}
	opt.Exports = []client.ExportEntry{export}
	show, err := req.display()
	if err != nil {
		return Result{}, err
	}
	ctx = withoutNamespace(ctx)
	events, status := make(chan *client.SolveStatus), make(chan *client.SolveStatus)
	var res *client.SolveResponse
	executed := false
	var g errgroup.Group
	g.Go(func() (err error) {
		res, err = c.Solve(ctx, nil, opt, events)
		return err
	})
	g.Go(func() error {
		defer close(status)
		for s := range events { // Solve closes it, also after cancellation
			executed = executed || executes(s)
			status <- s
		}
		return nil
	})
	g.Go(func() error { return show(status) })
	if err := g.Wait(); err != nil {
		return Result{}, err
	}
	return Result{Digest: res.ExporterResponse[exptypes.ExporterImageDigestKey], Executed: executed}, nil
}

// withoutNamespace removes the caller's containerd namespace from the outgoing
// metadata: BuildKit would use it for its own calls to containerd.
func withoutNamespace(ctx context.Context) context.Context {
	md, ok := metadata.FromOutgoingContext(ctx)
	if !ok {
		return ctx
	}
	md = md.Copy()
	md.Delete(namespaces.GRPCHeader)
	return metadata.NewOutgoingContext(ctx, md)
}

// exporter stores the image in containerd, unpacked.
func (c Config) exporter(req Request) client.ExportEntry {
	// zstd takes two thirds of gzip's time, and OCI clients support it.
	attrs := map[string]string{"unpack": "true", "oci-mediatypes": "true", "compression": "zstd"}
	if len(req.Names) > 0 {
		attrs["name"] = strings.Join(req.Names, ",")
	} else {
		attrs["store"], attrs["unpack"] = "false", "false"
	}
	return client.ExportEntry{Type: client.ExporterImage, Attrs: attrs}
}

func (r Request) solveOpt() (client.SolveOpt, error) {
	text, dir, name, err := r.dockerfile()
	if err != nil {
		return client.SolveOpt{}, err
	}
	mounts, err := r.mounts(text, dir, name)
	if err != nil {
		return client.SolveOpt{}, err
	}
	attrs := map[string]string{
		"filename": name, "image-resolve-mode": "local",
	}
	if err := r.namedContexts(attrs, mounts); err != nil {
		return client.SolveOpt{}, err
	}
	if r.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	if r.Target != "" {
		attrs["target"] = r.Target
	}
	if r.NoCache {
		attrs["no-cache"] = ""
	}
	if r.Platform != "" {
		attrs["platform"] = r.Platform
	}
	for k, v := range r.Args {
		attrs["build-arg:"+k] = v
	}
	for k, v := range r.Labels {
		attrs["label:"+k] = v
	}
	if remote(r.Context) {
		attrs["context"] = r.Context
	}
	if builtinFrontend(text, r.Args) {
		attrs["cmdline"] = "built-in"
	}
	store, err := secretStore(r.Secrets)
	if err != nil {
		return client.SolveOpt{}, err
	}
	docker, err := r.dockerConfig()
	if err != nil {
		return client.SolveOpt{}, err
	}
	return client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: mounts,
		AllowedEntitlements: []string{"network.host"},
		Session: []bksession.Attachable{
			authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{AuthConfigProvider: authprovider.LoadAuthConfig(docker)}),
			secretsprovider.NewSecretProvider(store),
		},
	}, nil
}

// dockerConfig reads registry credentials.
func (r Request) dockerConfig() (*configfile.ConfigFile, error) {
	if r.DockerConfig == "" {
		return configfile.New(""), nil
	}
	f, err := config.Load(r.DockerConfig)
	if err != nil {
		return nil, fmt.Errorf("read registry credentials: %w", err)
	}
	return f, nil
}

// builtinFrontend reports whether a Dockerfile requests the built-in frontend with
// "# syntax=docker/dockerfile:1", which would otherwise be fetched from a registry.
// Other frontends are fetched.
func builtinFrontend(text []byte, args map[string]string) bool {
	if args["BUILDKIT_SYNTAX"] != "" {
		return false
	}
	ref, _, _, ok := parser.DetectSyntax(text)
	return ok && (ref == "docker/dockerfile:1" || ref == "docker.io/docker/dockerfile:1")
}

// remote reports whether BuildKit fetches a context: a git repository or an archive.
func remote(context string) bool {
	for _, prefix := range []string{"https://", "http://", "git://", "ssh://", "git@"} {
		if strings.HasPrefix(context, prefix) {
			return true
		}
	}
	return false
}

// maxDockerfile bounds the size of a Dockerfile, in bytes.
const maxDockerfile = 4 << 20

// dockerfile returns the file's content, its directory and its base name.
func (r Request) dockerfile() (text []byte, dir, name string, err error) {
	switch {
	case r.Text != nil:
		return r.Text, "", "Dockerfile", nil
	case remote(r.Context): // part of the context
		return nil, "", r.Dockerfile, nil
	}
	f, err := os.Open(r.Dockerfile)
	if err != nil {
		return nil, "", "", fmt.Errorf("read Dockerfile: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err = io.ReadAll(io.LimitReader(f, maxDockerfile+1))
	if err != nil {
		return nil, "", "", fmt.Errorf("read Dockerfile: %w", err)
	}
	if len(text) > maxDockerfile {
		return nil, "", "", fmt.Errorf("read Dockerfile %s: larger than 4 MiB", r.Dockerfile)
	}
	return text, filepath.Dir(r.Dockerfile), filepath.Base(r.Dockerfile), nil
}

// mounts returns the directories that the build may read: the context, and the
// Dockerfile's directory with its ignore file.
func (r Request) mounts(text []byte, dir, name string) (map[string]fsutil.FS, error) {
	var err error
	out := map[string]fsutil.FS{}
	if remote(r.Context) && r.Text == nil {
		return out, nil
	}
	if dir != "" {
		if out["dockerfile"], err = fsutil.NewFS(dir); err != nil {
			return nil, fmt.Errorf("read the Dockerfile's directory: %w", err)
		}
	} else {
		out["dockerfile"] = oneFile(name, text)
	}
	if remote(r.Context) {
		return out, nil
	}
	if r.Context == "" {
		out["context"] = oneFile(".dockerignore", []byte("*\n"))
		return out, nil
	}
	if out["context"], err = fsutil.NewFS(r.Context); err != nil {
		return nil, fmt.Errorf("read build context: %w", err)
	}
	return out, nil
}

// namedContexts adds the named contexts.
func (r Request) namedContexts(attrs map[string]string, mounts map[string]fsutil.FS) error {
	for name, from := range r.Contexts {
		if remote(from) || strings.HasPrefix(from, "docker-image://") {
			attrs["context:"+name] = from
			continue
		}
		dir, err := fsutil.NewFS(from)
		if err != nil {
			return fmt.Errorf("read build context %s: %w", name, err)
		}
		mount := "named-" + name // must not collide with "context" and "dockerfile"
		mounts[mount] = dir
		attrs["context:"+name] = "local:" + mount
	}
	return nil
}

// secretStore reports missing secret files before the build starts.
func secretStore(list []Secret) (secrets.SecretStore, error) {
	s := secretValues{}
	for _, secret := range list {
		if secret.ID == "" {
			return nil, errors.New("missing id of a build secret")
		}
		if secret.Value == nil {
			fi, err := os.Stat(secret.File)
			if err != nil {
				return nil, fmt.Errorf("read build secret %s: %w", secret.ID, err)
			}
			if !fi.Mode().IsRegular() || fi.Size() > secretsprovider.MaxSecretSize {
				return nil, fmt.Errorf("read build secret %s: %s is not a regular file of at most %d bytes", secret.ID, secret.File, secretsprovider.MaxSecretSize)
			}
		}
		s[secret.ID] = secret
	}
	return s, nil
}

type secretValues map[string]Secret

// GetSecret is called when a step mounts a secret.
func (s secretValues) GetSecret(_ context.Context, id string) ([]byte, error) {
	secret, ok := s[id]
	switch {
	case !ok:
		return nil, secrets.ErrNotFound
	case secret.Value != nil:
		return bytes.Clone(secret.Value()), nil
	}
	return os.ReadFile(secret.File)
}
