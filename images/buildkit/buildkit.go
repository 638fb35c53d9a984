// Package buildkit builds images from Dockerfiles into containerd's store, with
// BuildKit as a library in this process: there is no daemon. What a build leaves
// for the next one, its cache, is in containerd's namespace of the images and in
// a state folder. The package starts containers (a Dockerfile's RUN steps) and
// ends them before it returns; it never pushes, and never touches an image that
// it was not asked to name.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/buildkit/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
)

// Config says where builds are made and where their cache is.
type Config struct {
	Address     string // containerd's socket
	Namespace   string // of images, content and snapshots
	Snapshotter string // empty: overlayfs
	StateDir    string // on disk; each socket and namespace has a folder of its own in it
	HostsDir    string // registries' hosts.toml files; empty: /etc/containerd/certs.d
	// CacheSize bounds the cache, in bytes; what was used least recently goes
	// first. Zero or less: no bound.
	CacheSize int64
	// Host is the address of a buildkitd that builds instead, as BUILDKIT_HOST
	// has it; the image comes back and into containerd's store.
	Host string
	// CheckLayer has a say about each layer of a base image, read from a content
	// store, before a build uses it.
	CheckLayer func(context.Context, content.Provider, ocispec.Descriptor) error
	// Unpack looks at an image that Host has built, by its name in the store of a
	// connection, and unpacks it.
	Unpack func(ctx context.Context, store *containerd.Client, ref string) error
	// Wait is told, once, when another build holds the state folder.
	Wait func()
	Log  *slog.Logger
}

// Request is one build.
type Request struct {
	Names   []string // normalised references; none: the image is built and kept in the cache only
	Context string   // folder, or the URL of a git repository or an archive; empty: none
	// Dockerfile is the file's path; Text, when set, stands for its content, and
	// Dockerfile is then the name that messages use. With a URL as context it is a path in there.
	Dockerfile string
	Text       []byte
	// Contexts are further ones, which FROM and COPY --from call by name: a folder,
	// a URL as in Context, or docker-image://REFERENCE.
	Contexts map[string]string
	Target   string
	Args     map[string]string
	Labels   map[string]string
	Secrets  []Secret
	Platform string // "linux/arm64"; empty: the host's
	NoCache  bool
	Pull     bool // ask registries for base images that the store has
	// DockerConfig is the folder of docker's config.json, for credentials; empty:
	// none are used.
	DockerConfig string
	// Progress is one of Modes; Out is where it is shown. With OnlyWork nothing is
	// shown of a build that has nothing to do.
	Progress string
	Out      io.Writer
	OnlyWork bool
}

// Secret is a value that RUN --mount=type=secret,id=ID shows to a step. It is
// read when a step asks for it, and is kept in no layer and no cache.
type Secret struct {
	ID    string
	File  string        // its content is the value, unless Value is set
	Value func() []byte // what it returns is not kept
}

// Modes are the ways to show progress.
var Modes = []string{"auto", "plain", "tty", "rawjson", "quiet"}

// Result tells what was built.
type Result struct {
	Digest string // of the manifest that the names point to
	Worked bool   // a step ran or something was fetched; else all was in the cache
}

// Errors that a caller can give advice on.
var (
	ErrNoSpace      = errors.New("a disk is full")
	ErrPermission   = errors.New("containerd may not be used")
	ErrNoContainerd = errors.New("containerd does not answer")
)

// Build makes an image. Two builds with one state folder run one after the
// other. What an earlier build that was killed has left is removed first.
func Build(ctx context.Context, cfg Config, req Request) (Result, error) {
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
	began := time.Now()
	res, err := solve(ctx, s.client, req, cfg.exporter(req))
	if err == nil {
		err = s.limit(ctx, res.Worked)
	} else if gerr := s.giveBack(ctx, began, full(err)); gerr != nil {
		cfg.Log.Warn("remove what a failed build has left", "error", gerr)
	}
	return res, explain(errors.Join(err, s.close(ctx)))
}

// Prune removes the cache of builds: all of it, or what exceeds Config's
// CacheSize. It returns how many bytes that freed.
func Prune(ctx context.Context, cfg Config, all bool) (int64, error) {
	cfg = cfg.complete()
	if cfg.Host != "" {
		return 0, errors.New("prune the build cache: it is the daemon's, at " + cfg.Host)
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

// reachable finds a missing daemon or permission before anything is made.
func (c Config) reachable() error {
	conn, err := net.Dial("unix", strings.TrimPrefix(c.Address, "unix://"))
	if err != nil {
		return connectError(c.Address, err)
	}
	return conn.Close()
}

// policy is what the cache may keep at a build's end.
func (c Config) policy() []client.PruneInfo {
	if c.CacheSize <= 0 {
		return nil
	}
	return []client.PruneInfo{{All: true, MaxUsedSpace: c.CacheSize}}
}

// quiet gives BuildKit's log, which is the process's, to ours.
func (c Config) quiet() {
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.WarnLevel)
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(logHook{c.Log})
	// Go's HTTP/2 server, on which BuildKit serves its client, writes here.
	log.SetOutput(slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug).Writer())
}

type logHook struct{ log *slog.Logger }

func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

// Fire passes everything on as details: what the user has to know comes as an
// error.
func (h logHook) Fire(e *logrus.Entry) error {
	h.log.Debug("buildkit: "+e.Message, "level", e.Level.String(), "details", fmt.Sprint(map[string]any(e.Data)))
	return nil
}
