package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// Errors of Connect that a caller words differently.
var (
	ErrNoContainerd = errors.New("no containerd answers")
	ErrPermission   = errors.New("permission denied")
)

// Config says which containerd is used, and how.
type Config struct {
	Address     string       // absolute path of containerd's gRPC socket
	Namespace   string       // containerd namespace that holds bottles and images
	Snapshotter string       // empty: overlayfs
	RunDir      string       // on tmpfs; holds a folder for each bottle
	Log         *slog.Logger // nil: silent
}

// Client is a connection to one containerd namespace.
type Client struct {
	cfg  Config
	ctrd *containerd.Client
	log  *slog.Logger
}

// dialTimeout bounds how long a containerd that accepts but says nothing may
// hold a command up.
const dialTimeout = 5 * time.Second

// Connect returns a client whose containerd has answered once. The error wraps
// ErrNoContainerd where nothing listens at the address and ErrPermission where
// the socket may not be opened.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Snapshotter == "" {
		cfg.Snapshotter = "overlayfs"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// The gRPC client would retry a missing socket until its deadline; asking
	// the socket first gives the true reason at once.
	if err := probe(ctx, cfg.Address); err != nil {
		return nil, err
	}
	ctrd, err := containerd.New(cfg.Address,
		containerd.WithDefaultNamespace(cfg.Namespace), containerd.WithTimeout(dialTimeout))
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrNoContainerd, cfg.Address, err)
	}
	vctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := ctrd.Version(vctx); err != nil {
		return nil, errors.Join(fmt.Errorf("%w at %s: %w", ErrNoContainerd, cfg.Address, err), ctrd.Close())
	}
	return &Client{cfg: cfg, ctrd: ctrd, log: cfg.Log}, nil
}

func probe(ctx context.Context, address string) error {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EPERM):
		return fmt.Errorf("open containerd's socket %s: %w", address, ErrPermission)
	default:
		return fmt.Errorf("%w at %s: %w", ErrNoContainerd, address, errors.Unwrap(err))
	}
}

// Close ends the connection; what runs goes on.
func (c *Client) Close() error { return c.ctrd.Close() }

// Containerd is the connection itself, for the package that handles images.
func (c *Client) Containerd() *containerd.Client { return c.ctrd }

// Namespace is the containerd namespace this client works in.
func (c *Client) Namespace() string { return c.cfg.Namespace }

// Dir is the folder of the bottle called name, on tmpfs.
func (c *Client) Dir(name string) string {
	return filepath.Join(c.cfg.RunDir, c.cfg.Namespace, name)
}

func (c *Client) in(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, c.cfg.Namespace)
}
