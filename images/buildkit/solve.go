package buildkit

import (
	"context"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"
)

// solve runs a build and shows its progress.
func solve(ctx context.Context, c *client.Client, req Request, export client.ExportEntry) (Result, error) {
	in, err := newInputs(req)
	if err != nil {
		return Result{}, err
	}
	defer in.close()
	opt, err := in.solveOpt()
	if err != nil {
		return Result{}, err
	}
	opt.Exports = []client.ExportEntry{export}
	show, err := req.display()
	if err != nil {
		return Result{}, err
	}
	ctx, in.cancel = context.WithCancel(withoutNamespace(ctx))
	defer in.cancel()
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
		return Result{}, in.explain(err)
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

func (in *inputs) solveOpt() (client.SolveOpt, error) {
	r := in.req
	attrs := map[string]string{"image-resolve-mode": "local"}
	mounts, err := in.contexts(attrs)
	if err != nil {
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
	session, err := in.attachables(attrs)
	if err != nil {
		return client.SolveOpt{}, err
	}
	return client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: mounts,
		AllowedEntitlements: r.entitlements, Session: session,
	}, nil
}

// attachables are the services that the build can call.
func (in *inputs) attachables(attrs map[string]string) ([]bksession.Attachable, error) {
	store, err := in.secretStore()
	if err != nil {
		return nil, err
	}
	out := []bksession.Attachable{in.credentials(), secretsprovider.NewSecretProvider(store)}
	if len(in.req.SSH) > 0 {
		agents, err := in.sshAgents()
		if err != nil {
			return nil, err
		}
		out = append(out, agents)
	}
	if in.req.Tar != nil {
		uploads := uploadprovider.New()
		attrs["context"] = uploads.Add(io.NopCloser(in.req.Tar))
		out = append(out, uploads)
	}
	return out, nil
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
