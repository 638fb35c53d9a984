package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/bot-bottle/bottle/internal/imageowner"
	"github.com/bot-bottle/bottle/internal/known"
	"github.com/bot-bottle/bottle/internal/program"
)

// Errors of Connect that callers distinguish.
var (
	ErrNoContainerd = errors.New("cannot connect to containerd")
	ErrPermission   = errors.New("permission denied")
)

// Config selects a containerd and how it is used.
type Config struct {
	Address     string // absolute path of containerd's gRPC socket
	Namespace   string // containerd namespace that holds bottles and images
	Snapshotter string // empty: overlayfs
	RunDir      string // on tmpfs; holds one directory per bottle
	StateDir    string // holds one directory per bottle with the log of its proxy
	// Shim is the absolute path of a program that containerd runs as the shim of agents
	// under runsc: one that executes gVisor's shim without TTRPC_ADDRESS. Empty, or if
	// containerd cannot run it: gVisor's shim itself, with which an agent is lost if an
	// event occurs while containerd is stopped.
	Shim string
	// Runsc opens the program that the shim runs in place of runsc (cmd/bottle/runscprogram); nil:
	// runsc itself.
	Runsc    func() (io.ReadCloser, error)
	Programs program.Store // for it
	Log      *slog.Logger  // nil: silent
	// Owner is the user whose images are seen, see package imageowner.
	Owner           int
	MayRemoveShared func() bool
}

// Client is a connection to one containerd namespace.
type Client struct {
	cfg  Config
	ctrd *containerd.Client
	log  *slog.Logger

	shimOnce sync.Once
	shim     string // containerd's name of the runtime for agents under runsc
	shimErr  error  // why it is not Config.Shim

	checkedMu sync.Mutex
	checked   map[string]string // evidence of this process's checks, by the runtime
}

// dialTimeout bounds the wait for a containerd that accepts connections but does
// not respond.
const dialTimeout = 5 * time.Second

// Connect returns a client after containerd has responded once. The error wraps
// ErrNoContainerd if nothing responds at the address, and ErrPermission if the
// caller may not open the socket.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Snapshotter == "" {
		cfg.Snapshotter = "overlayfs"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	// The gRPC client retries a missing socket until its deadline. Dialing the
	// socket first returns the actual cause immediately.
	if err := probe(ctx, cfg.Address); err != nil {
		return nil, err
	}
	var stores known.Stores
	ctrd, err := imageowner.New(cfg.Address, cfg.Owner, cfg.MayRemoveShared, stores.Services(),
		containerd.WithDefaultNamespace(cfg.Namespace), containerd.WithTimeout(dialTimeout),
		containerd.WithExtraDialOpts(dialOptions()))
	if err != nil {
		return nil, fmt.Errorf("%w at %s: %w", ErrNoContainerd, cfg.Address, err)
	}
	conn, err := imageowner.Conn(ctrd)
	if err != nil {
		return nil, errors.Join(err, ctrd.Close())
	}
	stores.Connected(conn)
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

// Close closes the connection. Running tasks are not affected.
func (c *Client) Close() error { return c.ctrd.Close() }

// Containerd returns the underlying connection, for the images package.
func (c *Client) Containerd() *containerd.Client { return c.ctrd }

// Namespace returns the containerd namespace of this client.
func (c *Client) Namespace() string { return c.cfg.Namespace }

// Dir returns the directory of the named bottle, on tmpfs.
func (c *Client) Dir(name string) string {
	return filepath.Join(c.cfg.RunDir, c.cfg.Namespace, name)
}

func (c *Client) withNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, c.cfg.Namespace)
}
