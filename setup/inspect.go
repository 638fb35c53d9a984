package setup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// minContainerd is the oldest major version of containerd that bottle uses.
const minContainerd = 2

// pluginDirs are the directories of distributions' packages of CNI plugins.
var pluginDirs = []string{privateCNI, "/usr/lib/cni", "/usr/libexec/cni"}

var plugins = []string{"bridge", "host-local", "static"}

// host is what setup found on the host.
type host struct {
	parts []Part
	// address and cniPath are what bottle's configuration must say; empty: what it says.
	address, cniPath string
	// startUnit is a unit of the host that must be started.
	startUnit string
	// private: the containerd of setup is used, or will be.
	private bool
}

func (h *host) part(name string) *Part {
	for i := range h.parts {
		if h.parts[i].Name == name {
			return &h.parts[i]
		}
	}
	h.parts = append(h.parts, Part{Name: name})
	return &h.parts[len(h.parts)-1]
}

func (h *host) missing() []string {
	var out []string
	for _, p := range h.parts {
		if p.Found == "" {
			out = append(out, p.Name)
		}
	}
	return out
}

// inspect finds the parts. It changes nothing.
func (c Config) inspect(ctx context.Context, rec *record) *host {
	h := &host{}
	c.inspectContainerd(ctx, h, rec)
	h.part(PartGVisor).Found = c.both("runsc", "containerd-shim-runsc-v1")
	h.part(PartRunc).Found = c.lookPath("runc")
	for _, dir := range append(filepath.SplitList(c.CNIPath), pluginDirs...) {
		if !c.hasPlugins(dir) {
			continue
		}
		h.part(PartCNI).Found = dir
		if c.hasPluginsIn(c.CNIPath) == "" {
			h.cniPath = dir
		}
		return h
	}
	h.part(PartCNI)
	return h
}

// inspectContainerd accepts, in this order, the containerd that answers, setup's own, and an
// installed one that is not running.
func (c Config) inspectContainerd(ctx context.Context, h *host, rec *record) {
	p := h.part(PartContainerd)
	for _, address := range []string{c.Address, PrivateAddress} {
		version, err := c.Version(ctx, address)
		if err != nil || major(version) < minContainerd {
			continue
		}
		p.Found = version + " at " + address
		if address != c.Address {
			h.address = address
		}
		h.private = address == PrivateAddress
		return
	}
	if rec.has(privateBin + "/containerd") {
		if out, err := c.command(ctx, c.path(privateBin+"/containerd"), "--version"); err == nil {
			p.Found, h.private = "stopped: "+strings.TrimSpace(string(out)), true
		}
		return
	}
	if path := c.lookPath("containerd"); path != "" && c.systemd() {
		out, err := c.command(ctx, path, "--version")
		if v := programVersion(string(out)); err == nil && major(v) >= minContainerd {
			p.Found, h.startUnit = "stopped: "+v+" in "+path, "containerd.service"
		}
	}
}

// programVersion returns the version in the output of containerd --version: the third word.
func programVersion(output string) string {
	words := strings.Fields(output)
	if len(words) < 3 {
		return ""
	}
	return words[2]
}

// major returns the major version; 0 if there is none.
func major(version string) int {
	text, _, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}

// programDirs are the directories in which sudo and systemd search by default.
var programDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// lookPath finds a program where root and containerd search, whatever PATH is now.
func (c Config) lookPath(name string) string {
	for _, dir := range programDirs {
		if c.executable(filepath.Join(dir, name)) {
			return filepath.Join(dir, name)
		}
	}
	return ""
}

// both returns the paths of two programs, or "" if one is missing.
func (c Config) both(a, b string) string {
	pa, pb := c.lookPath(a), c.lookPath(b)
	if pa == "" || pb == "" {
		return ""
	}
	return fmt.Sprintf("%s, %s", pa, pb)
}

func (c Config) executable(path string) bool {
	fi, err := os.Stat(c.path(path))
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

func (c Config) hasPlugins(dir string) bool {
	for _, name := range plugins {
		if dir == "" || !c.executable(filepath.Join(dir, name)) {
			return false
		}
	}
	return true
}

// hasPluginsIn returns the first directory of a list that has all plugins.
func (c Config) hasPluginsIn(list string) string {
	for _, dir := range filepath.SplitList(list) {
		if c.hasPlugins(dir) {
			return dir
		}
	}
	return ""
}
