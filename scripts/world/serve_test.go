package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestAddresses(t *testing.T) {
	var out bytes.Buffer
	if code := run(t.Context(), []string{"addresses"}, &out, testWriter{t}); code != 0 {
		t.Fatalf("world addresses: exit code %d", code)
	}
	lines := strings.Fields(out.String())
	for _, want := range []string{"198.51.101.53/32", "169.254.169.254/32", "10.99.0.10/32", "2001:db8:77::66/128", "fd00:99::10/128"} {
		if !slices.Contains(lines, want) {
			t.Errorf("missing %s in %q", want, lines)
		}
	}
	// Names of addresses outside the world: the host's and a bottle's own.
	elsewhere := []string{"internal.test", "labhost.test", "zero.test"}
	for name, addrs := range zone {
		for _, a := range addrs {
			a = a.Unmap()
			if !a.IsLoopback() && !slices.Contains(elsewhere, name) && !slices.Contains(addresses(), a) {
				t.Errorf("%s resolves to %s, which the world does not serve", name, a)
			}
		}
	}
}

func TestAuthorityIsPersistent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	for range 2 {
		if code := run(t.Context(), []string{"ca", "--state", dir}, os.Stdout, testWriter{t}); code != 0 {
			t.Fatalf("world ca: exit code %d", code)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("ca.key has mode %o", info.Mode().Perm())
	}
	first, err := loadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	second, err := loadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !first.cert.Equal(second.cert) || !first.cert.IsCA {
		t.Error("the authority changed or is not a CA")
	}
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, err := loadAuthority(dir); err == nil {
		t.Error("an authority without its key was accepted")
	}
}

func TestInvalidCommandLines(t *testing.T) {
	for _, args := range [][]string{{}, {"fly"}, {"serve"}, {"ca"}, {"serve", "--state", "/x", "more"}, {"serve", "--port", "1"}} {
		var errs bytes.Buffer
		if code := run(t.Context(), args, os.Stdout, &errs); code != 2 || !strings.HasPrefix(errs.String(), "world: ") {
			t.Errorf("%q: code %d, %q", args, code, errs.String())
		}
	}
}

// TestMissingAddress checks that the error names the missing address.
func TestMissingAddress(t *testing.T) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("198.51.101.14/32")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrDel(lo, addr); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
	}()
	state := t.TempDir()
	err = serve(t.Context(), options{state: state, ca: state, git: true}, testWriter{t})
	if err == nil || !strings.Contains(err.Error(), "198.51.101.14:443") {
		t.Errorf("serve without an address: %v", err)
	}
	if _, err := os.Stat(filepath.Join(state, "ready")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the ready file exists: %v", err)
	}
}

// TestProcess runs the program as the lab does: the ready file contains its
// process id, a signal stops it with exit code 0, and it can be restarted with the
// same state.
func TestProcess(t *testing.T) {
	state := t.TempDir()
	program := filepath.Join(t.TempDir(), "world")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("build the program: %v\n%s", err, out)
	}
	for range 2 {
		ctx, kill := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, program, "serve", "--state", state, "--git")
		cmd.Stderr = testWriter{t}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		waitReady(t, state, ended)
		pid, err := os.ReadFile(filepath.Join(state, "ready"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(pid)) != strconv.Itoa(cmd.Process.Pid) {
			t.Errorf("process id in the ready file: got %q, want %d", pid, cmd.Process.Pid)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("exit: %v", err)
		}
		kill()
		if _, err := os.Stat(filepath.Join(state, "ready")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the ready file was not removed: %v", err)
		}
	}
}

func TestDNS(t *testing.T) {
	state := startWorld(t)
	for _, network := range []string{"udp", "tcp"} {
		r := worldResolver(network)
		for name, want := range map[string]string{
			"allowed.test.":     "198.51.101.10",
			"API.anthropic.com": "198.51.101.14",
			"private.test":      "10.99.0.10",
			"meta.test":         "169.254.169.254",
			"mixed.test":        "198.51.101.10 10.99.0.10",
			"v6.test":           "2001:db8:77::10",
		} {
			got, err := r.LookupHost(t.Context(), name)
			if err != nil || strings.Join(got, " ") != want {
				t.Errorf("%s over %s: %q, %v; want %s", name, network, got, err, want)
			}
		}
	}
	r := worldResolver("udp")
	if got, err := r.LookupNetIP(t.Context(), "ip6", "allowed.test"); err == nil {
		t.Errorf("allowed.test has IPv6 addresses %v", got)
	}
	if got, err := r.LookupHost(t.Context(), "secret.exfil.test"); err == nil {
		t.Errorf("secret.exfil.test resolves to %v", got)
	}
	e := waitEvent(t, state, "the query for an unknown name", func(e event) bool {
		return e.Event == "query" && e.Name == "secret.exfil.test." && e.Type == "A"
	})
	if e.Local != "198.51.101.53:53" || e.Transport != "udp" || e.Answer != nil {
		t.Errorf("unexpected log entry of the query: %+v", e)
	}
}

func TestFlip(t *testing.T) {
	startWorld(t)
	var got []netip.Addr
	for range 4 {
		addrs, err := worldResolver("udp").LookupNetIP(t.Context(), "ip4", flipName)
		if err != nil || len(addrs) != 1 {
			t.Fatalf("%v, %v", addrs, err)
		}
		got = append(got, addrs[0].Unmap())
	}
	if want := []netip.Addr{addrFlip, addrPrivate, addrFlip, addrPrivate}; !slices.Equal(got, want) {
		t.Errorf("flip.test: got %v, want %v", got, want)
	}
}
