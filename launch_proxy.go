package bottle

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/program"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
)

// startProxy writes the proxy's files, and creates and starts its task.
func (l *launch) startProxy(ctx context.Context) (err error) {
	defer func() { err = proxyHint(ctx, l.plan.Proxy, err) }()
	if err := l.step(ctx, "write proxy files", l.writeProxyFiles); err != nil {
		return err
	}
	if l.plan.Proxy.Kind == manifest.ProxyPipelock {
		if err := l.step(ctx, "prepare proxy image", l.prepareProxyRoot); err != nil {
			return err
		}
	}
	if err := wait(ctx, l.namespaced); err != nil {
		return err
	}
	state := l.state()
	var task, front *runtime.Task
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return l.step(gctx, "create proxy", func(ctx context.Context) (err error) {
			task, err = l.createProxy(ctx)
			return err
		})
	})
	if state.Front() {
		g.Go(func() error {
			return l.step(gctx, "create front of proxy", func(ctx context.Context) (err error) {
				front, err = l.createFront(ctx)
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	// The proxy's address must exist before it listens.
	if err := wait(ctx, l.networked); err != nil {
		return err
	}
	err = l.step(ctx, "start proxy", func(ctx context.Context) error {
		return l.e.proxies.Start(ctx, l.plan.Name, task)
	})
	if err == nil && front != nil {
		err = l.step(ctx, "start front of proxy", func(ctx context.Context) error {
			return l.e.proxies.StartFront(ctx, l.plan.Name, front)
		})
	}
	if err != nil || l.plan.Proxy.Kind != manifest.ProxyPipelock {
		return err
	}
	return l.step(ctx, "check proxy version", l.checkProxyVersion)
}

// proxyVersionTimeout bounds the wait for the line in which pipelock logs its version.
// It is written before the proxy is healthy, but may not have reached the log yet.
const proxyVersionTimeout = 2 * time.Second

// checkProxyVersion warns if pipelock is not the version that its configuration was
// rendered for, as with an image whose tag or stated version is wrong: other versions
// ignore some of the configuration's keys, or understand them differently.
func (l *launch) checkProxyVersion(ctx context.Context) error {
	if l.e.cfg.Notice == nil {
		return nil
	}
	wctx, cancel := context.WithTimeout(ctx, proxyVersionTimeout)
	defer cancel()
	planned := l.plan.Proxy.Version
	switch version := strings.TrimPrefix(l.e.proxies.StartVersion(wctx, l.plan.Name), "v"); version {
	case planned:
	case "":
		l.e.cfg.Notice(fmt.Sprintf("WARNING: the proxy's image %s does not report its version; the configuration is for pipelock %s", l.plan.Proxy.Image, planned))
	default:
		l.e.cfg.Notice(fmt.Sprintf("WARNING: the proxy's image %s contains pipelock %s, and the configuration is for %s: correct proxy.version or the tag in the manifest", l.plan.Proxy.Image, version, planned))
	}
	return ctx.Err()
}

// proxyHint adds a hint to an error about a proxy from an image, unless the proxy is not
// the cause: of a taken name, or of a launch that failed elsewhere.
func proxyHint(ctx context.Context, p plan.Proxy, err error) error {
	if ctx.Err() != nil || errors.Is(err, runtime.ErrTaken) {
		return err
	}
	return p.Hint(err)
}

// writeProxyFiles creates the built-in proxy's read-only root, which contains only mount
// points, and the configuration of either proxy.
func (l *launch) writeProxyFiles(context.Context) error {
	state := l.state()
	if err := makeProxyDir(l.e.proxies.Dir(l.plan.Name)); err != nil {
		return err
	}
	if state.Front() {
		if err := makeProxyDir(l.e.proxies.FrontDir(l.plan.Name)); err != nil {
			return err
		}
		if err := l.e.proxies.StoreFront(l.plan.Name, state); err != nil {
			return err
		}
	}
	small := program.Program{Open: l.e.cfg.ProxyProgram, Bottle: l.e.cfg.Program, Store: l.e.cfg.programs()}
	if _, err := small.Write(l.e.stateDir(l.plan.Name), proxy.ProgramName); err != nil {
		return err
	}
	if err := l.writeSecrets(state); err != nil {
		return err
	}
	return l.e.proxies.Store(l.plan.Name, state)
}

// makeProxyDir creates the directory of a proxy's files.
func makeProxyDir(dir string) error {
	for _, d := range []string{"rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs/etc", "rootfs/config", "config"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("create proxy root: %w", err)
		}
	}
	files := map[string]string{
		"rootfs/bottle": "", "rootfs/etc/resolv.conf": "", "rootfs/etc/hosts": "",
		"hosts": "127.0.0.1\tlocalhost\n",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write proxy files: %w", err)
		}
	}
	return nil
}

// prepareProxyRoot creates pipelock's root from its image. It checks the digest again:
// the name may refer to another image since the plan was made.
func (l *launch) prepareProxyRoot(ctx context.Context) error {
	p := l.plan.Proxy
	info, err := l.e.Image(ctx, p.Image)
	if err != nil {
		return err
	}
	if p.Digest != "" && info.Digest != p.Digest {
		return fmt.Errorf("proxy image %s has changed: got %s, planned %s", p.Image, info.Digest, p.Digest)
	}
	if err := l.e.Images().Unpack(ctx, p.Image); err != nil {
		return err
	}
	id := names.Proxy(l.plan.Name)
	l.proxyRoot, err = l.e.rt.PrepareProxyRootFS(ctx, id, p.Image, []string{"/etc/resolv.conf", "/etc/hosts"}, []string{"/config"})
	if err != nil {
		return err
	}
	l.claim.Own(l.proxyRoot.Remove)
	return nil
}

// createFront creates the task in front of the proxy.
func (l *launch) createFront(ctx context.Context) (*runtime.Task, error) {
	name, dir := l.plan.Name, l.e.proxies.FrontDir(l.plan.Name)
	return l.e.rt.CreateProxy(ctx, runtime.ProxyConfig{
		Name: name, Front: true, Dir: dir, NetNS: netns.ProxyPath(l.dir), Hostname: "proxy", Args: proxy.FrontCommand(),
		Mounts: append(l.proxyMounts(dir), runtime.Mount{Source: l.e.proxies.Program(name), Target: "/bottle"}),
		CPUs:   proxyCPUs(l.plan.Limits.CPUs),
		Logger: l.e.proxies.Program(name), LogFile: l.e.proxies.FrontLogFile(name),
		Labels: l.labels(runtime.RoleFront),
	})
}

func (l *launch) proxyMounts(dir string) []runtime.Mount {
	return []runtime.Mount{
		{Source: filepath.Join(dir, "config"), Target: "/config"},
		{Source: filepath.Join(l.dir, "resolv.conf"), Target: "/etc/resolv.conf"},
		{Source: filepath.Join(dir, "hosts"), Target: "/etc/hosts"},
	}
}

func (l *launch) createProxy(ctx context.Context) (*runtime.Task, error) {
	name, dir := l.plan.Name, l.e.proxies.Dir(l.plan.Name)
	mounts := l.proxyMounts(dir)
	if l.proxyRoot == nil {
		mounts = append(mounts, runtime.Mount{Source: l.e.proxies.Program(name), Target: "/bottle"})
	}
	cfg := runtime.ProxyConfig{
		Name: name, Dir: dir, NetNS: netns.ProxyPath(l.dir), Hostname: "proxy", RootFS: l.proxyRoot,
		Args: l.state().Command(), Mounts: mounts,
		CPUs: proxyCPUs(l.plan.Limits.CPUs), Memory: l.plan.Proxy.Memory,
		Logger: l.e.proxies.Program(name), LogFile: l.e.proxies.LogFile(name),
		Labels: l.labels(runtime.RoleProxy),
	}
	if l.plan.Proxy.Kind == manifest.ProxyPipelock {
		cfg.Memory = max(cfg.Memory, egress.PipelockMemory)
		cfg.Env = []string{egress.PipelockEnv(cfg.Memory)}
	}
	task, err := l.e.rt.CreateProxy(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return task, nil
}

// minProxyCPUs is what a proxy needs to start and answer in time.
const minProxyCPUs = 0.5

// proxyCPUs returns the agent's CPU limit, if it has one: the agent must not use more
// through its proxy.
func proxyCPUs(agent float64) float64 {
	if agent == 0 {
		return 0
	}
	return max(agent, minProxyCPUs)
}

// openDestinations lets the proxy reach the private addresses of the policy, restricts a
// proxy without port rules to the ports of the policy, and lets the process in front of it
// reach it.
func (l *launch) openDestinations(ctx context.Context) error {
	d, err := l.state().Destinations()
	if err != nil || len(d.Ports)+len(d.Private) == 0 && !d.Front {
		return err
	}
	return l.e.net.SetDestinations(ctx, l.dir, d)
}

// writeResolvConf writes the proxy's resolv.conf with the host's resolvers, and returns
// them.
func (l *launch) writeResolvConf() ([]netip.Addr, error) {
	servers, _ := netns.HostResolvers()
	var text strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&text, "nameserver %s\n", s)
	}
	err := os.WriteFile(filepath.Join(l.dir, "resolv.conf"), []byte(text.String()), 0o644)
	if err != nil {
		return nil, fmt.Errorf("write proxy resolv.conf: %w", err)
	}
	return servers, nil
}

// state returns the state of the proxy when the launch is complete. That of a prepared
// bottle allows nothing and has no secrets, and that of a fork is its source's.
func (l *launch) state() proxy.State {
	if l.fork != nil {
		return l.fork.state
	}
	s := initialState(l.plan)
	if l.ahead {
		s.Learn, s.Entries, s.Inject = false, egress.Entries{}, false
	}
	return s
}

// initialState returns the state of a plan's proxy at launch.
func initialState(p *plan.Plan) proxy.State {
	return proxy.State{
		Kind: p.Proxy.Kind, Version: p.Proxy.Version, Learn: p.Learn, Entries: p.Entries(),
		Manifest: p.Manifest, Bottle: p.Bottle, Hostname: names.Hostname(p.Name),
		Inject: len(p.Entries().Rules)+len(p.Injected()) > 0,
	}
}
