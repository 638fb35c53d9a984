package images_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// beyondLoopback is the test host's address on its uplink.
const beyondLoopback = "192.0.2.2"

// plainHosts returns a directory of hosts.toml files that redirects host to at over
// HTTP.
func plainHosts(t *testing.T, host, at string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, host), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, host, "hosts.toml"),
		fmt.Appendf(nil, "server = %[1]q\n[host.%[1]q]\n  capabilities = [\"pull\", \"resolve\", \"push\"]\n", "http://"+at), 0o600))
	return dir
}

// TestPlainHTTP: outside loopback, HTTP is used only if hosts.toml configures it, and
// hosts.toml can redirect a registry to another address.
func TestPlainHTTP(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	r := labtest.PlainRegistryAt(t, beyondLoopback)
	ref := r.Host + "/plain:1"
	put(ctx, t, c, ref, runtime.GOARCH)
	if _, err := s.Push(ctx, ref, images.Remote{}); !errors.Is(err, images.ErrUnreachable) {
		t.Errorf("pushed without TLS: %v", err)
	}
	hosts := plainHosts(t, r.Host, r.Host)
	if _, err := s.Push(ctx, ref, images.Remote{HostsDir: hosts}); err != nil {
		t.Fatal(err)
	}
	drop(ctx, t, c, ref)
	before := stored(ctx, t, c)
	if _, err := s.Pull(ctx, ref, images.Remote{}); !errors.Is(err, images.ErrUnreachable) || !strings.Contains(err.Error(), "HTTPS") {
		t.Errorf("pulled without TLS: %v", err)
	}
	sameStore(ctx, t, c, before, 0)
	for name, hosts := range map[string]string{ref: hosts, "registry.nowhere.test/plain:1": plainHosts(t, "registry.nowhere.test", r.Host)} {
		if _, err := s.Pull(ctx, name, images.Remote{HostsDir: hosts}); err != nil {
			t.Errorf("with hosts.toml: %v", err)
			continue
		}
		drop(ctx, t, c, name)
	}
}

// TestNoPlainByte checks the first byte of each connection to a registry outside
// loopback: it begins a TLS handshake, also on retries. The control is the same
// registry configured for HTTP.
func TestNoPlainByte(t *testing.T) {
	leakcheck.Check(t)
	ctx, _, s := connect(t)
	first := func(plain bool) []byte {
		host, seen := firstBytes(t, beyondLoopback)
		hosts := ""
		if plain {
			hosts = plainHosts(t, host, host)
		}
		if _, err := s.Pull(ctx, host+"/a:1", images.Remote{HostsDir: hosts}); err == nil {
			t.Error("the pull succeeded")
		}
		return seen()
	}
	const tls = 22 // a handshake record, RFC 8446 section 5.1
	if got := first(false); len(got) == 0 || slices.ContainsFunc(got, func(b byte) bool { return b != tls }) {
		t.Errorf("first bytes of its connections: %q", got)
	}
	if got := first(true); !slices.Contains(got, 'H') { // HEAD request for the manifest
		t.Errorf("control: first bytes of its connections: %q", got)
	}
}

// firstBytes listens on an address and closes every connection after its first byte.
func firstBytes(t *testing.T, address string) (host string, seen func() []byte) {
	t.Helper()
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []byte
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 1)
			if _, err := io.ReadFull(c, b); err == nil {
				mu.Lock()
				got = append(got, b[0])
				mu.Unlock()
			}
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { must(t, l.Close()) })
	return l.Addr().String(), func() []byte {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
}
