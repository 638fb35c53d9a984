package buildkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	docker "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	bkconfig "github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor/containerdexecutor"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	bksession "github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/util/winlayers"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"

	"github.com/bot-bottle/bottle/internal/imageowner"
)

// session is a BuildKit instance for one call.
type session struct {
	cfg    Config
	state  *state
	store  *containerd.Client            // of the images' namespace
	undo   []func(context.Context) error // last made first
	worker *base.Worker
	server *grpc.Server
	client *client.Client
}

// closeTime bounds the clean-up, which uses a separate context.
const closeTime = 30 * time.Second

// open locks the state directory, removes the leftovers of a killed build and starts
// BuildKit.
func open(ctx context.Context, cfg Config) (_ *session, err error) {
	cfg.quiet()
	ctx = withNamespace(ctx, cfg.Namespace)
	s := &session{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	st, err := cfg.openState(ctx)
	if err != nil {
		return nil, err
	}
	s.state = st
	s.push(func(context.Context) error { return st.close() })
	store, err := s.connect(cfg.Namespace)
	if err != nil {
		return nil, err
	}
	s.store = store
	steps, err := s.connect(cfg.stepsNamespace(st))
	if err != nil {
		return nil, err
	}
	if err := reap(ctx, steps); err != nil {
		return nil, err
	}
	s.push(func(ctx context.Context) error {
		return errors.Join(dropNamespace(ctx, steps), removeCgroups(steps.DefaultNamespace()))
	})
	if err := st.prepare(); err != nil {
		return nil, err
	}
	lm := leaseManager{Manager: store.LeasesService(), dir: st.dir, id: st.id}
	own, err := lm.sweep(ctx)
	if err != nil {
		return nil, err
	}
	if own == 0 {
		// containerd has none of the cache's content: its state may have been removed.
		if err := st.emptyCache(); err != nil {
			return nil, err
		}
	}
	s.push(func(ctx context.Context) error {
		if !st.discard {
			return nil
		}
		return lm.removeAll(withNamespace(ctx, cfg.Namespace))
	})
	list, err := cfg.catalogue(ctx, store)
	if err != nil {
		return nil, err
	}
	defer list.close()
	opt, err := cfg.workerOpt(st, store, steps, leaseutil.WithNamespace(lm, cfg.Namespace), list)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, st, opt); err != nil {
		return nil, err
	}
	if err := s.removeLeftovers(ctx); err != nil {
		return nil, fmt.Errorf("remove leftovers of an earlier build: %w", err)
	}
	return s, nil
}

func (s *session) push(fn func(context.Context) error) { s.undo = append(s.undo, fn) }

func (s *session) connect(namespace string) (*containerd.Client, error) {
	c, err := imageowner.New(s.cfg.Address, s.cfg.Owner, func() bool { return false }, nil, containerd.WithDefaultNamespace(namespace), containerd.WithTimeout(10*time.Second))
	if err != nil {
		return nil, connectError(s.cfg.Address, err)
	}
	s.push(func(context.Context) error { return c.Close() })
	return c, nil
}

// close undoes open, but keeps the cache.
func (s *session) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
	defer cancel()
	var errs []error
	for i := len(s.undo) - 1; i >= 0; i-- {
		errs = append(errs, s.undo[i](ctx))
	}
	s.undo = nil
	return errors.Join(errs...)
}

// stepsNamespace is the containerd namespace of this state directory's RUN steps. It
// contains nothing else, so everything found in it under the lock belongs to a killed
// build.
func (c Config) stepsNamespace(st *state) string {
	sum := sha256.Sum256([]byte(st.dir))
	return c.Namespace + ".build-" + hex.EncodeToString(sum[:6])
}

// workerOpt assembles a worker: BuildKit's own constructor for containerd requires a
// single namespace and a daemon's settings.
func (c Config) workerOpt(st *state, store, steps *containerd.Client, lm *leaseutil.Manager, list *catalogue) (base.WorkerOpt, error) {
	root := st.cache()
	md, err := metadata.NewStore(filepath.Join(root, "metadata.db"))
	if err != nil {
		return base.WorkerOpt{}, fmt.Errorf("open build cache %s: %w", root, err)
	}
	own := ownNetwork{fmt.Sprintf("/proc/%d/ns/net", os.Getpid())}
	nets := map[pb.NetMode]network.Provider{pb.NetMode_UNSET: own, pb.NetMode_HOST: own, pb.NetMode_NONE: network.NewNoneProvider()}
	if c.StepProxy != nil {
		nets[pb.NetMode_UNSET] = proxiedNetwork{c.StepProxy}
		delete(nets, pb.NetMode_HOST)
	}
	cs := containerdsnapshot.NewContentStore(list.content(store.ContentStore()), c.Namespace)
	return base.WorkerOpt{
		ID: st.id, Root: root, Labels: map[string]string{},
		Platforms: []ocispec.Platform{platforms.Normalize(platforms.DefaultSpec())},
		GCPolicy:  c.policy(), NetworkProviders: nets,
		Executor: containerdexecutor.New(containerdexecutor.ExecutorOptions{
			Client: steps, Root: root, NetworkProviders: nets, CgroupParent: steps.DefaultNamespace(),
		}),
		Snapshotter:  containerdsnapshot.NewSnapshotter(c.Snapshotter, list.snapshotter(store.SnapshotService(c.Snapshotter)), c.Namespace, nil),
		ContentStore: cs,
		Applier:      winlayers.NewFileSystemApplierWithWindows(cs, checkingApplier{store.DiffService(), cs, c.CheckLayer}),
		Differ:       winlayers.NewWalkingDiffWithWindows(cs, store.DiffService()),
		ImageStore:   store.ImageService(),
		RegistryHosts: docker.ConfigureHosts(context.Background(), docker.HostOptions{
			HostDir: docker.HostDirFromRoot(c.HostsDir),
		}),
		LeaseManager: lm, GarbageCollect: collect(lm), MetadataStore: md,
		MountPoolRoot: filepath.Join(st.tmp(), "mounts"),
	}, nil
}

// checkingApplier checks each layer while the daemon unpacks it.
type checkingApplier struct {
	diff.Applier
	content content.Store
	check   func(context.Context, content.Store, ocispec.Descriptor) error
}

// Apply implements diff.Applier.
func (a checkingApplier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	checked := make(chan error, 1)
	go func() {
		err := a.check(ctx, a.content, d)
		if err != nil {
			cancel()
		}
		checked <- err
	}()
	out, err := a.Applier.Apply(ctx, d, mounts, opts...)
	if cerr := <-checked; cerr != nil {
		return ocispec.Descriptor{}, cerr
	}
	return out, err
}

// collect makes containerd remove unreferenced objects and waits for it.
func collect(lm *leaseutil.Manager) func(context.Context) (gc.Stats, error) {
	return func(ctx context.Context) (gc.Stats, error) {
		l, err := lm.Create(ctx, leases.WithRandomID())
		if err != nil {
			return nil, err
		}
		return nil, lm.Delete(ctx, l, leases.SynchronousDelete)
	}
}

// start runs BuildKit's controller and connects to it in memory.
func (s *session) start(ctx context.Context, st *state, opt base.WorkerOpt) error {
	n, err := s.sourcesNetwork()
	if err != nil {
		return errors.Join(err, opt.MetadataStore.Close())
	}
	if err := s.confineGit(n, s.cfg.Owner); err != nil {
		return errors.Join(err, opt.MetadataStore.Close())
	}
	type opened struct {
		databases
		err error
	}
	others := make(chan opened, 1)
	go func() { // concurrently with the worker, which runs `git version`
		d, err := openDatabases(st)
		others <- opened{d, err}
	}()
	w, err := base.NewWorker(ctx, opt)
	dbs := <-others
	if err != nil {
		return errors.Join(fmt.Errorf("start build worker: %w", err), opt.MetadataStore.Close(), dbs.close(), dbs.err)
	}
	if dbs.err != nil {
		return errors.Join(dbs.err, w.Close())
	}
	s.worker = w
	if n != nil {
		if err := proxyDownloads(w, n); err != nil {
			return errors.Join(err, w.Close(), dbs.close())
		}
	}
	wc := &worker.Controller{}
	if err := wc.Add(w); err != nil {
		return errors.Join(err, w.Close(), dbs.close())
	}
	controller, err := newController(wc, w, dbs.databases, s.cfg.entitlements())
	if err != nil {
		return errors.Join(fmt.Errorf("start BuildKit: %w", err), w.Close(), dbs.close())
	}
	s.push(func(context.Context) error {
		resolver.DefaultPool.Clear() // global, too: hosts and credentials of this build
		return errors.Join(clearChecksums(w), controller.Close())
	})
	listener := bufconn.Listen(256 << 10)
	s.server = grpc.NewServer(grpc.MaxRecvMsgSize(16<<20), grpc.MaxSendMsgSize(16<<20),
		// They transport an error's position in the Dockerfile.
		grpc.UnaryInterceptor(grpcerrors.UnaryServerInterceptor), grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor))
	controller.Register(s.server)
	done := make(chan error, 1)
	go func() { done <- s.server.Serve(listener) }()
	s.push(func(context.Context) error { s.server.Stop(); return <-done })
	s.client, err = client.New(ctx, "passthrough:///buildkit", client.WithContextDialer(
		func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		return fmt.Errorf("connect to BuildKit: %w", err)
	}
	s.push(func(context.Context) error { return s.client.Close() })
	return nil
}

// clearChecksums empties BuildKit's global cache of snapshot checksums, which refers
// to the database that is about to be closed. Otherwise the next build in this
// process would use it.
func clearChecksums(w *base.Worker) error {
	items, err := w.MetadataStore.All()
	if err != nil {
		return fmt.Errorf("list build cache: %w", err)
	}
	for _, item := range items {
		contenthash.ClearCacheContext(refID{id: item.ID()})
	}
	return nil
}

// refID is a snapshot's metadata, reduced to its id.
type refID struct {
	cache.RefMetadata
	id string
}

func (r refID) ID() string { return r.id }

// databases are BuildKit's databases other than the worker's.
type databases struct {
	links   *bboltcachestorage.Store
	history *boltutil.DB
}

func openDatabases(st *state) (d databases, err error) {
	if d.links, err = bboltcachestorage.NewStore(filepath.Join(st.cache(), "cache.db")); err != nil {
		return databases{}, fmt.Errorf("open build cache: %w", err)
	}
	d.history, err = boltutil.SafeOpen(filepath.Join(st.cache(), "history.db"), 0o600, &bolt.Options{NoFreelistSync: true})
	if err != nil {
		return databases{}, errors.Join(fmt.Errorf("open build cache: %w", err), d.links.Close())
	}
	return d, nil
}

func (d databases) close() error {
	if d.links == nil {
		return nil
	}
	return errors.Join(d.links.Close(), d.history.Close())
}

// entitlements are what a build may request: RUN --network=host, if that is what its
// steps have anyway.
func (c Config) entitlements() []string {
	if c.StepProxy != nil {
		return nil
	}
	return []string{"network.host"}
}

func newController(wc *worker.Controller, w *base.Worker, dbs databases, entitlements []string) (*control.Controller, error) {
	sessions, err := bksession.NewManager()
	if err != nil {
		return nil, err
	}
	gw, err := gateway.NewGatewayFrontend(wc.Infos(), nil)
	if err != nil {
		return nil, err
	}
	none := int64(0) // no build history: nothing could query it
	return control.NewController(control.Opt{
		SessionManager: sessions, WorkerController: wc,
		Frontends: map[string]frontend.Frontend{
			"dockerfile.v0": forwarder.NewGatewayForwarder(wc.Infos(), dockerfile.Build),
			"gateway.v0":    gw,
		},
		CacheManager: solver.NewCacheManager(context.Background(), "local", dbs.links, worker.NewCacheResultStorage(wc)),
		Entitlements: entitlements,
		HistoryDB:    dbs.history, HistoryConfig: &bkconfig.HistoryConfig{MaxEntries: &none},
		CacheStore: dbs.links, LeaseManager: w.LeaseManager(), ContentStore: w.ContentStore(), GarbageCollect: w.GarbageCollect,
	})
}
