package bottle

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

func (l *launch) makeProxy(ctx context.Context) error {
	if err := l.step(ctx, "proxy files", l.writeProxyFiles); err != nil {
		return err
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
		return l.startProxy(ctx, task)
	})
}

// writeProxyFiles makes the proxy's read-only root, which holds nothing but
// places to mount things on, and its configuration.
func (l *launch) writeProxyFiles(context.Context) error {
	dir := filepath.Join(l.dir, "proxy")
	for _, d := range []string{"rootfs/proc", "rootfs/sys", "rootfs/dev", "rootfs/etc", "rootfs/config", "config"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return fmt.Errorf("make the proxy's root: %w", err)
		}
	}
	conf, err := json.MarshalIndent(egress.Config{
		Listen: proxyListen, Entries: l.plan.entriesFor(l.plan.SSH),
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("render the proxy's configuration: %w", err)
	}
	files := map[string]string{
		"rootfs/bottle": "", "rootfs/etc/resolv.conf": "", "rootfs/etc/hosts": "127.0.0.1\tlocalhost\n",
		"config/proxy.json": string(conf),
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("write the proxy's files: %w", err)
		}
	}
	return nil
}

func (l *launch) createProxy(ctx context.Context) (*runtime.Task, error) {
	name, dir := l.plan.Name, filepath.Join(l.dir, "proxy")
	task, err := l.e.rt.CreateProxy(ctx, runtime.ProxyConfig{
		Name: name, Dir: dir, NetNS: netns.ProxyPath(l.dir), Hostname: "proxy",
		Args: []string{"/bottle", "proxy", "--config", "/config/proxy.json"},
		Mounts: []runtime.Mount{
			{Source: l.e.cfg.Program, Target: "/bottle"},
			{Source: filepath.Join(dir, "config"), Target: "/config"},
			{Source: filepath.Join(l.dir, "resolv.conf"), Target: "/etc/resolv.conf"},
		},
		Logger: l.e.cfg.Program, LogFile: l.e.proxyLog(name),
		Labels: l.labels(runtime.RoleProxy),
	})
	if err != nil {
		return nil, err
	}
	l.undo.push(func(ctx context.Context) error { return l.e.rt.Remove(ctx, name+runtime.ProxySuffix) })
	return task, nil
}

// startProxy returns when the proxy's health endpoint has answered.
func (l *launch) startProxy(ctx context.Context, task *runtime.Task) error {
	log := l.e.proxyLog(l.plan.Name)
	watch, err := watchFile(log)
	if err != nil {
		return err
	}
	defer func() { _ = watch.Close() }()
	if err := task.Start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, proxyTimeout)
	defer cancel()
	client := l.proxyClient()
	defer client.CloseIdleConnections()
	// A proxy says on its log that it has started; asking then, and not in
	// rounds, costs neither time nor sleep. The ticker is for a proxy that
	// speaks before it listens.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-watch.Events:
		case <-tick.C:
		case <-task.Exited():
			return fmt.Errorf("the proxy ended at once%s", lastLines(log))
		case <-ctx.Done():
			return fmt.Errorf("wait for the proxy's health endpoint: %w%s", ctx.Err(), lastLines(log))
		}
		if healthy(ctx, client) {
			return nil
		}
	}
}

// watchFile tells of writes to a file that may not exist yet.
func watchFile(file string) (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the proxy's log: %w", err)
	}
	if err := w.Add(filepath.Dir(file)); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the proxy's log: %w", err), w.Close())
	}
	return w, nil
}

// proxyClient speaks to the proxy from inside its own namespace: it listens
// nowhere else.
func (l *launch) proxyClient() *http.Client {
	return &http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.DialIn(ctx, netns.ProxyPath(l.dir), network, addr)
		}},
	}
}

func healthy(ctx context.Context, client *http.Client) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ProxyURL+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// lastLines is the end of a log, for an error's text.
func lastLines(file string) string {
	data, err := os.ReadFile(file)
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	if len(lines) > 5 {
		lines = lines[len(lines)-5:]
	}
	return "; it said: " + strings.Join(lines, " | ")
}

// writeResolvConf gives the proxy the host's resolvers and returns them. A stub
// on a loopback address is out of the proxy's reach: systemd-resolved's
// upstreams stand in for it.
func (l *launch) writeResolvConf() ([]netip.Addr, error) {
	var servers []netip.Addr
	for _, f := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		servers = readResolvers(f)
		if len(servers) > 0 {
			break
		}
	}
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
