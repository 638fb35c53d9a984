// Package buildkit builds images from Dockerfiles into containerd's store, using
// BuildKit as a library in this process, without a daemon. The build cache is kept
// in the images' containerd namespace and in a state directory. The package starts
// containers (for a Dockerfile's RUN steps) and removes them before it returns. It
// never pushes, and never changes an image name that is not in the request.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"os"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/bot-bottle/bottle/internal/asuser"
)

// Config configures builds and their cache.
type Config struct {
	Address     string // containerd's socket
	Namespace   string // of images, content and snapshots
	Snapshotter string // empty: overlayfs
	StateDir    string // on disk; contains one directory per socket and namespace
	HostsDir    string // registries' hosts.toml files; empty: /etc/containerd/certs.d
	// CacheSize limits the cache, in bytes; the least recently used entries are
	// removed first. Zero or less: no limit.
	CacheSize int64
	// Host is the address of a buildkitd to use instead, in the form of
	// BUILDKIT_HOST; the image is imported into containerd's store.
	Host string
	// CheckLayer validates each layer of a base image, read from a content store,
	// before a build uses it.
	CheckLayer func(context.Context, content.Store, ocispec.Descriptor) error
	// Unpack validates and unpacks a built image, by its name in the store of the
	// given connection.
	Unpack func(ctx context.Context, store *containerd.Client, ref string) error
	// Owner is the user whose images are seen and named, see package imageowner.
	Owner int
	// StepProxy serves the proxy that is the only way out of RUN steps and of downloads, on
	// a listener until the context ends. Nil: they use this process's network.
	StepProxy func(context.Context, net.Listener) error
	// Wait is called once if another build has locked the state directory.
	Wait func()
	Log  *slog.Logger
}

// Request is one build.
type Request struct {
	Names   []string // normalised references; none: the result is only cached
	Context string   // directory, or URL of a git repository or an archive; empty: none
	// Tar is the context instead: a tar archive, plain or compressed with gzip, bzip2
	// or xz (IsArchive).
	Tar io.Reader
	// Dockerfile is the file's path, relative to the context if that is a URL or Tar.
	// If Text is set, it is the content and Dockerfile is the name used in messages.
	Dockerfile string
	Text       []byte
	// Caller is the user whose rights are used to read files and to connect to
	// agents. The zero value is root.
	Caller asuser.User
	// Contexts are named contexts for FROM and COPY --from: a directory, a URL as in
	// Context, or docker-image://REFERENCE.
	Contexts map[string]string
	Target   string
	Args     map[string]string
	Labels   map[string]string
	Secrets  []Secret
	SSH      []SSHAgent
	Platform string // "linux/arm64"; empty: the host's
	NoCache  bool
	Pull     bool // check registries for newer versions of base images in the store
	// Credentials returns the caller's credentials for a registry host, or for a
	// mirror; with an empty username the secret is an identity token. Nil: none.
	Credentials func(ctx context.Context, host string) (username, secret string, err error)
	// Progress is one of Modes and is written to Out. With QuietIfCached, nothing is
	// written if everything comes from the cache.
	Progress      string
	Out           io.Writer
	QuietIfCached bool

	buildkitd    bool // a daemon builds
	entitlements []string
}

// Secret is a value for RUN --mount=type=secret,id=ID. It is read when a step uses it
// and is stored neither in layers nor in the cache.
type Secret struct {
	ID    string
	File  string        // contains the value, unless Value is set
	Value func() []byte // the result is not retained
}

// Modes are the progress modes.
var Modes = []string{"auto", "plain", "tty", "rawjson", "quiet"}

// Result describes a finished build.
type Result struct {
	Digest   string // of the manifest the names point to
	Executed bool   // a step ran or data was fetched; otherwise everything was cached
}

// Errors that a caller can distinguish.
var (
	ErrNoSpace      = errors.New("no space left on disk")
	ErrPermission   = errors.New("no permission to use containerd")
	ErrNoContainerd = errors.New("containerd is not reachable")
	// ErrUnreadable means that the caller has no permission to read a file. bottle
	// itself, being root, could read it.
	ErrUnreadable = errors.New("no permission to read")
)

// Build builds an image. Builds with the same state directory run sequentially. The
// leftovers of a killed build are removed first.
func Build(ctx context.Context, cfg Config, req Request) (Result, error) {
	if err := checkHostsDir(cfg.HostsDir); err != nil {
		return Result{}, err
	}
	cfg = cfg.complete()
	if err := cfg.reachable(); err != nil {
		return Result{}, err
	}
	if cfg.Host != "" {
		res, err := cfg.buildRemote(ctx, req)
		return res, explain(err)
	}
	s, err := open(ctx, cfg)
	if err != nil {
		return Result{}, explain(err)
	}
	start := time.Now()
	res, err := s.build(ctx, req)
	if err == nil {
		err = s.limit(ctx, res.Executed)
	} else if gerr := s.discardFailed(ctx, start, diskFull(err)); gerr != nil {
		cfg.Log.Warn("remove the leftovers of a failed build", "error", gerr)
	}
	return res, explain(errors.Join(err, s.close(ctx)))
}

// build builds an image and validates it, so that this need not be done before its
// first run. Images for other platforms do not run.
func (s *session) build(ctx context.Context, req Request) (res Result, err error) {
	ctx = withNamespace(ctx, s.cfg.Namespace)
	before, err := targets(ctx, s.store, req.Names)
	if err != nil {
		return Result{}, err
	}
	req.entitlements = s.cfg.entitlements()
	if s.cfg.StepProxy != nil {
		req.Args = proxyArgs(req.Args)
	}
	if res, err = solve(ctx, s.client, req, s.cfg.exporter(req)); err != nil {
		return Result{}, err
	}
	if req.Platform != "" {
		p, err := platforms.Parse(req.Platform)
		if err != nil || !platforms.Default().Match(p) {
			return res, nil //nolint:nilerr // BuildKit has accepted it
		}
	}
	return res, s.cfg.unpack(ctx, s.store, req.Names, before)
}

// Prune removes the build cache: all of it, or what exceeds Config.CacheSize. It
// returns the number of bytes freed.
func Prune(ctx context.Context, cfg Config, all bool) (int64, error) {
	cfg = cfg.complete()
	if cfg.Host != "" {
		return 0, errors.New("prune build cache: it belongs to buildkitd at " + cfg.Host)
	}
	if err := cfg.reachable(); err != nil {
		return 0, err
	}
	s, err := open(ctx, cfg)
	if err != nil {
		return 0, explain(err)
	}
	var freed int64
	if all {
		freed, err = s.prune(ctx, client.PruneInfo{All: true})
		s.state.discard = err == nil
	} else {
		freed, err = s.prune(ctx, cfg.policy()...)
	}
	return freed, explain(errors.Join(err, s.close(ctx)))
}

// checkHostsDir reports a missing directory of hosts.toml files, which BuildKit would
// ignore. Only the default one is optional.
func checkHostsDir(dir string) error {
	if dir == "" {
		return nil
	}
	fi, err := os.Stat(dir)
	if err == nil && !fi.IsDir() {
		err = errors.New("not a directory")
	}
	if err != nil {
		return fmt.Errorf("read registry settings in %s: %w", dir, err)
	}
	return nil
}

func (c Config) complete() Config {
	if c.Snapshotter == "" {
		c.Snapshotter = "overlayfs"
	}
	if c.HostsDir == "" {
		c.HostsDir = "/etc/containerd/certs.d"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Wait == nil {
		c.Wait = func() {}
	}
	return c
}

// reachable detects a missing daemon or permission before anything is created.
func (c Config) reachable() error {
	conn, err := net.Dial("unix", strings.TrimPrefix(c.Address, "unix://"))
	if err != nil {
		return connectError(c.Address, err)
	}
	return conn.Close()
}

// policy limits the cache at the end of a build.
func (c Config) policy() []client.PruneInfo {
	if c.CacheSize <= 0 {
		return nil
	}
	return []client.PruneInfo{{All: true, MaxUsedSpace: c.CacheSize}}
}

// quiet redirects BuildKit's log, the process's global loggers, to c.Log.
func (c Config) quiet() {
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.WarnLevel)
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(logHook{c.Log})
	// Go's HTTP/2 server, which BuildKit uses for its client, logs here.
	log.SetOutput(slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug).Writer())
}

type logHook struct{ log *slog.Logger }

func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire forwards all entries at debug level: what users need is returned as errors.
func (h logHook) Fire(e *logrus.Entry) error {
	h.log.Debug("buildkit: "+e.Message, "level", e.Level.String(), "details", fmt.Sprint(map[string]any(e.Data)))
	return nil
}
