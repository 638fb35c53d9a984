package runtime

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/containerd/containerd/v2/defaults"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// A shim that is killed leaves its socket, which containerd removes only when it starts
// another shim for the same container.

// shimSocket matches the name of a shim's socket.
var shimSocket = lazyregexp.New(`^[0-9a-f]{64}$`)

// shimSocketName returns the name of the socket of a container's shim (containerd
// pkg/shim, CreateSocketAddress).
func (c *Client) shimSocketName(id string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(filepath.Join(c.cfg.Address, c.cfg.Namespace, id))))
}

// shimSocketDirs returns the directories that may contain shims' sockets: the default,
// which runsc's shim always uses, its counterpart next to containerd's own socket, and
// those of the running shims. Containerd does not report its configuration.
func (c *Client) shimSocketDirs() ([]string, error) {
	dirs := []string{filepath.Join(defaults.DefaultStateDir, "s"), filepath.Join(filepath.Dir(c.cfg.Address), "s")}
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		path := fields[len(fields)-1]
		if dir := filepath.Dir(path); filepath.IsAbs(path) && shimSocket().MatchString(filepath.Base(path)) && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs, nil
}

// removeShimSocket removes the socket of a container's shim if nothing listens on it.
func (c *Client) removeShimSocket(id string, dirs []string) error {
	for _, dir := range dirs {
		path := filepath.Join(dir, c.shimSocketName(id))
		conn, err := net.Dial("unix", path)
		if err == nil {
			_ = conn.Close() // nothing was written
			continue
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			continue // there is none, or it is not a socket
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove socket of %s: %w", id, err)
		}
	}
	return nil
}
