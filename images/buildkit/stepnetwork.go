package buildkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"time"

	resources "github.com/moby/buildkit/executor/resources/types"
	httpsource "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/worker/base"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// stepProxy is where the steps of a build find their proxy, in a network namespace in
// which nothing else exists.
const stepProxy = "127.0.0.1:3128"

// proxiedNetwork gives each RUN step a network namespace of its own with nothing but a
// loopback interface. This process listens there, and its proxy is the only way out: the
// step has no route, and reaches neither the host's loopback nor its abstract sockets.
// There is nothing to clean up: the kernel removes the namespace with its last user, also
// when this process was killed.
type proxiedNetwork struct {
	serve func(context.Context, net.Listener) error
}

// New implements network.Provider.
func (p proxiedNetwork) New(context.Context, string, network.NamespaceOptions) (network.Namespace, error) {
	return p.namespace()
}

func (p proxiedNetwork) namespace() (*stepNamespace, error) {
	ns, l, err := newNamespace()
	if err != nil {
		return nil, fmt.Errorf("create network of a build step: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &stepNamespace{file: ns, cancel: cancel, served: make(chan error, 1)}
	go func() { n.served <- p.serve(ctx, l) }()
	return n, nil
}

// Close implements network.Provider.
func (proxiedNetwork) Close() error { return nil }

// newNamespace creates a network namespace and a listener in it. It does so on a thread
// that the Go runtime destroys with the goroutine.
func newNamespace() (*os.File, net.Listener, error) {
	type result struct {
		ns  *os.File
		l   net.Listener
		err error
	}
	out := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		var r result
		if r.err = unix.Unshare(unix.CLONE_NEWNET); r.err == nil {
			if r.err = loopbackUp(); r.err == nil {
				r.ns, r.err = os.Open("/proc/thread-self/ns/net")
			}
		}
		if r.err == nil {
			if r.l, r.err = net.Listen("tcp", stepProxy); r.err != nil {
				r.err = errors.Join(r.err, r.ns.Close())
			}
		}
		out <- r
	}()
	r := <-out
	return r.ns, r.l, r.err
}

// loopbackUp sets the loopback interface of the thread's namespace up (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// stepNamespace is the namespace of one step, with its proxy.
type stepNamespace struct {
	file   *os.File
	cancel func()
	served chan error
}

// Set implements network.Namespace.
func (n *stepNamespace) Set(s *specs.Spec) error {
	return ownNetwork{n.path()}.Set(s)
}

// path returns the namespace's file for other processes.
func (n *stepNamespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Close ends the proxy. The file is closed last: the step joins the namespace by it.
func (n *stepNamespace) Close() error {
	n.cancel()
	return errors.Join(<-n.served, n.file.Close())
}

// Sample implements network.Namespace.
func (*stepNamespace) Sample() (*resources.NetworkSample, error) { return nil, nil }

// dial connects to the proxy in the namespace, from a thread in it.
func (n *stepNamespace) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	out := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		var r result
		if r.err = unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); r.err == nil {
			r.conn, r.err = new(net.Dialer).DialContext(ctx, "tcp", stepProxy)
		}
		out <- r
	}()
	r := <-out
	return r.conn, r.err
}

// transport returns a transport through the proxy, for what BuildKit downloads itself.
func (n *stepNamespace) transport() http.RoundTripper {
	return &http.Transport{
		Proxy:       http.ProxyURL(&url.URL{Scheme: "http", Host: stepProxy}),
		DialContext: n.dial, TLSHandshakeTimeout: 30 * time.Second, ForceAttemptHTTP2: true,
	}
}

// proxyDownloads makes a worker download with ADD, and archives as contexts, through a
// proxy as steps do.
func proxyDownloads(w *base.Worker, n *stepNamespace) error {
	source, err := httpsource.NewSource(httpsource.Opt{CacheAccessor: w.CacheMgr, Transport: n.transport()})
	if err != nil {
		return fmt.Errorf("start build worker: %w", err)
	}
	w.HTTPSource = source
	w.SourceManager.Register(source)
	return nil
}

// sourcesNetwork creates the namespace from which BuildKit downloads what steps do not;
// nil: this process's network.
func (s *session) sourcesNetwork() (*stepNamespace, error) {
	if s.cfg.StepProxy == nil {
		return nil, nil
	}
	n, err := proxiedNetwork{s.cfg.StepProxy}.namespace()
	if err != nil {
		return nil, err
	}
	s.push(func(context.Context) error { return n.Close() })
	return n, nil
}

// proxyArgs returns build arguments with the variables of the steps' proxy, which are
// part of neither the image nor the cache's keys (Dockerfile reference, "Predefined
// ARGs"). They replace the caller's: no other proxy can be reached.
func proxyArgs(args map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range args {
		switch strings.ToLower(k) {
		case "http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy":
		default:
			out[k] = v
		}
	}
	for _, k := range []string{"HTTP_PROXY", "HTTPS_PROXY"} {
		out[k] = "http://" + stepProxy
	}
	out["NO_PROXY"] = "localhost,127.0.0.1,::1"
	return out
}
