package netns

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// lease is an address of the egress network that host-local assigned.
type lease struct {
	addr netip.Addr
	id   string // of the bottle, see containerID
	file string
}

// leases reads host-local's directory: one file per address, which contains the
// id, a CRLF and the interface's name (plugins/ipam/host-local/backend/disk in
// github.com/containernetworking/plugins).
func (m *Manager) leases(network string) ([]lease, error) {
	dir := filepath.Join(m.ipamDir(), network)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	var out []lease
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // host-local's lock and last reserved address
		}
		file := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		id, _, _ := bytes.Cut(data, []byte("\r\n"))
		out = append(out, lease{addr: addr, id: string(bytes.TrimSpace(id)), file: file})
	}
	return out, nil
}

func (m *Manager) leasesOf(network, id string) ([]lease, error) {
	all, err := m.leases(network)
	var out []lease
	for _, l := range all {
		if l.id == id {
			out = append(out, l)
		}
	}
	return out, err
}

func (l lease) free() error {
	if err := os.Remove(l.file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("free the lease of %s: %w", l.id, err)
	}
	return nil
}

// freeStale frees the leases of bottles that have no directory any more, and
// returns the others.
func (m *Manager) freeStale(leases []lease) ([]lease, error) {
	var live []lease
	var errs []error
	for _, l := range leases {
		if m.exists(l.id) {
			live = append(live, l)
			continue
		}
		m.log.Warn("free a stale lease: its bottle does not exist", "address", l.addr, "id", l.id)
		errs = append(errs, l.free())
	}
	return live, errors.Join(errs...)
}

// exists reports whether the bottle with the given id has a directory.
func (m *Manager) exists(id string) bool {
	dir, err := m.bottleDir(id)
	if err == nil {
		_, err = os.Lstat(dir)
	}
	return err == nil
}
