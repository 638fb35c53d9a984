package bottle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/proxy"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

func (l *launch) makeProxy(ctx context.Context) error {
	return proxyHint(ctx, l.plan.Proxy, l.makeAnyProxy(ctx))
}

func (l *launch) makeAnyProxy(ctx context.Context) error {
	if err := l.step(ctx, "proxy files", l.writeProxyFiles); err != nil {
		return err
	}
	if l.plan.Proxy.Kind == manifest.ProxyPipelock {
		if err := l.step(ctx, "proxy image", l.makeProxyRoot); err != nil {
			return err
		}
	}
	if err := wait(ctx, l.namespaced); err != nil {
		return err
	}
	var task *runtime.Task
	err := l.step(ctx, "proxy container", func(ctx context.Context) (err error) {
		task, err = l.createProxy(ctx)
		return err
	})
	if err != nil {
		return err
	}
	// The proxy's address must be there before it listens.
	if err := wait(ctx, l.networked); err != nil {
		return err
	}
	return l.step(ctx, "proxy healthy", func(ctx context.Context) error {
		return l.e.proxies.Start(ctx, l.plan.Name, task)
	})
}

// proxyHint tells what to do about a proxy that does not run. It is not bottle's
// to choose another.
func proxyHint(ctx context.Context, p plan.Proxy, err error) error {
	// A name that is taken is not the proxy's fault, nor is another's failure.
	if err == nil || p.Kind != manifest.ProxyPipelock || ctx.Err() != nil || errors.Is(err, runtime.ErrTaken) {
		return err
	}
	return &hint.Error{
		Err:  fmt.Errorf("proxy %s: %w", p.Image, err),
		Hint: "name an image of pipelock that runs under proxy: in the manifest, or choose --proxy builtin",
	}
}

// writeProxyFiles makes the built-in proxy's read-only root, which holds nothing
// but places to mount things on, and any proxy's configuration.
func (l *launch) writeProxyFiles(context.Context) error {
	dir := l.e.proxies.Dir(l.plan.Name)
	for _, d := range []string{"rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs/etc", "rootfs/config", "config"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("make the proxy's root: %w", err)
		}
	}
	files := map[string]string{
		"rootfs/bottle": "", "rootfs/etc/resolv.conf": "", "rootfs/etc/hosts": "",
		"hosts": "127.0.0.1\tlocalhost\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write the proxy's files: %w", err)
		}
	}
	return l.e.proxies.Store(l.plan.Name, initialState(l.plan))
}

// makeProxyRoot makes pipelock's root of its image. The digest is looked at once
// more: the name may have got another image since the plan was made.
func (l *launch) makeProxyRoot(ctx context.Context) error {
	p := l.plan.Proxy
	info, err := l.e.Image(ctx, p.Image)
	if err != nil {
		return err
	}
	if p.Digest != "" && info.Digest != p.Digest {
		return fmt.Errorf("the proxy's image %s has changed: it is %s, the plan has %s", p.Image, info.Digest, p.Digest)
	}
	if err := registryHint(p.Image, l.e.images.Unpack(ctx, p.Image)); err != nil {
		return err
	}
	id := names.Proxy(l.plan.Name)
	l.proxyRoot, err = l.e.rt.PrepareProxyRootFS(ctx, id, p.Image, []string{"/etc/resolv.conf", "/etc/hosts"}, []string{"/config"})
	if err != nil {
		return err
	}
	l.undo.push(func(ctx context.Context) error { return l.e.rt.RemoveSnapshot(ctx, id) })
	return nil
}

func (l *launch) createProxy(ctx context.Context) (*runtime.Task, error) {
	name, dir := l.plan.Name, l.e.proxies.Dir(l.plan.Name)
	mounts := []runtime.Mount{
		{Source: filepath.Join(dir, "config"), Target: "/config"},
		{Source: filepath.Join(l.dir, "resolv.conf"), Target: "/etc/resolv.conf"},
		{Source: filepath.Join(dir, "hosts"), Target: "/etc/hosts"},
	}
	if l.proxyRoot == nil {
		mounts = append(mounts, runtime.Mount{Source: l.e.cfg.Program, Target: "/bottle"})
	}
	cfg := runtime.ProxyConfig{
		Name: name, Dir: dir, NetNS: netns.ProxyPath(l.dir), Hostname: "proxy", RootFS: l.proxyRoot,
		Args: initialState(l.plan).Command(), Mounts: mounts,
		CPUs:   proxyCPUs(l.plan.Limits.CPUs),
		Logger: l.e.cfg.Program, LogFile: l.e.proxies.LogFile(name),
		Labels: l.labels(runtime.RoleProxy),
	}
	if l.plan.Proxy.Kind == manifest.ProxyPipelock {
		cfg.Memory, cfg.Env = egress.PipelockMemory, []string{egress.PipelockEnv}
	}
	task, err := l.e.rt.CreateProxy(ctx, cfg)
	if err != nil {
		return nil, err
	}
	l.undo.push(func(ctx context.Context) error { return l.e.rt.Remove(ctx, names.Proxy(name)) })
	return task, nil
}

// leastProxyCPUs is what a proxy needs to start and answer in time.
const leastProxyCPUs = 0.5

// proxyCPUs are the agent's, if those are bounded: what it may not do itself it may
// not have its proxy do.
func proxyCPUs(agent float64) float64 {
	if agent == 0 {
		return 0
	}
	return max(agent, leastProxyCPUs)
}

// openDestinations lets the proxy reach what the policy names beside public
// addresses, and keeps one that knows no ports to those of the policy.
func (l *launch) openDestinations(ctx context.Context) error {
	d, err := initialState(l.plan).Destinations()
	if err != nil || len(d.Ports)+len(d.Private) == 0 {
		return err
	}
	return l.e.net.SetDestinations(ctx, l.dir, d)
}

// writeResolvConf gives the proxy the host's resolvers and returns them.
func (l *launch) writeResolvConf() ([]netip.Addr, error) {
	servers, _ := HostResolvers()
	var text strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&text, "nameserver %s\n", s)
	}
	err := os.WriteFile(filepath.Join(l.dir, "resolv.conf"), []byte(text.String()), 0o644)
	if err != nil {
		return nil, fmt.Errorf("write the proxy's resolv.conf: %w", err)
	}
	return servers, nil
}

// HostResolvers returns the host's name servers that a proxy can reach, and the file
// that names them. A stub on a loopback address is out of a proxy's reach:
// systemd-resolved's upstream servers replace it.
func HostResolvers() (servers []netip.Addr, file string) {
	for _, file = range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		if servers = readResolvers(file); len(servers) > 0 {
			return servers, file
		}
	}
	return nil, ""
}

// readResolvers returns a resolv.conf's IPv4 name servers but for loopback's:
// the egress network has no IPv6.
func readResolvers(file string) []netip.Addr {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	var out []netip.Addr
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && a.Is4() && !a.IsLoopback() {
			out = append(out, a)
		}
	}
	return out
}

// initialState is the state of a plan's proxy at launch.
func initialState(p *plan.Plan) proxy.State {
	return proxy.State{
		Kind: p.Proxy.Kind, Version: p.Proxy.Version, Learn: p.Learn, Entries: p.EntriesFor(p.SSH),
		Manifest: p.Manifest, Bottle: p.Bottle,
	}
}
