package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/asuser"
)

// Labels of a derived image.
const (
	labelFingerprint = "bottle.derived.fingerprint" // of directory and base; missing: not reusable
	labelDir         = "bottle.derived.dir"
	labelBase        = "bottle.derived.base" // the base image's name
)

// layoutVersion changes when the same directory would produce a different layer.
const layoutVersion = "1"

// Derivation describes a derived image: a base plus a directory.
type Derivation struct {
	Ref    string // normalised name of the derived image
	Base   string // normalised name of the base image, which is in the store
	Dir    string // absolute path of the directory; it is only read
	Target string // absolute path of the directory in the image, and its working directory
	// Caller is the user whose rights are used to read the directory. The zero value
	// is root.
	Caller asuser.User
	// Owner returns the owner of all files; called only when a layer is created.
	Owner func(context.Context) (uid, gid int, err error)
	// Notice is called for each entry that is omitted or altered. It and Progress
	// may be nil.
	Notice   func(string)
	Progress ProgressFunc
}

// Derive creates an image from a base and a directory, unpacked and ready to run, and
// reports whether it had to: for an unchanged directory only its metadata is read. No
// symbolic link in the directory is followed. The error wraps ErrMissing, ErrPlatform,
// ErrUnreadable, ErrIgnoreLink or ErrNoSpace; after an error the store is unchanged.
func (s *Store) Derive(ctx context.Context, d Derivation) (created bool, err error) {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	if d.Notice == nil {
		d.Notice = func(string) {}
	}
	if created, err = s.derive(ctx, d); err != nil {
		if errors.Is(kindOf(err), ErrNoSpace) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return false, fmt.Errorf("create image %s from %s: %w", d.Ref, d.Dir, err)
	}
	return created, nil
}

func (s *Store) derive(ctx context.Context, d Derivation) (created bool, err error) {
	base, err := s.get(ctx, d.Base)
	if err != nil {
		return false, err
	}
	desc, manifest, err := s.manifest(ctx, base.Target())
	if err != nil {
		return false, err
	}
	start := time.Now()
	t, err := readTree(ctx, d.Dir, d.Caller)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	fingerprint := t.fingerprint(layoutVersion, desc.Digest.String(), d.Target)
	before, err := s.ctrd.ImageService().Get(ctx, d.Ref)
	if err != nil && !errdefs.IsNotFound(err) {
		return false, fmt.Errorf("look up image %s: %w", d.Ref, err)
	}
	if before.Labels[labelFingerprint] == fingerprint {
		return false, s.Unpack(ctx, d.Ref)
	}
	// A change in the same clock tick as the scan could not be detected later: the
	// next run packs again.
	if t.newest.After(start.Add(-clockTick)) {
		fingerprint = ""
	}
	l := &layering{store: s, d: d, tree: t, manifest: manifest, fingerprint: fingerprint}
	return true, s.leased(ctx, "derive "+d.Ref, l.make)
}

// clockTick is more than the granularity of file times (10 ms with CONFIG_HZ=100).
const clockTick = 50 * time.Millisecond

// layering is the creation of one derived image.
type layering struct {
	store       *Store
	d           Derivation
	tree        *tree
	manifest    ocispec.Manifest // of the base
	fingerprint string

	config ocispec.Image
	layer  ocispec.Descriptor
	diffID digest.Digest
}

func (l *layering) make(ctx context.Context) error {
	if err := readJSON(ctx, l.store.ctrd.ContentStore(), l.manifest.Config, &l.config); err != nil {
		return fmt.Errorf("read the configuration of %s: %w", l.d.Base, err)
	}
	if err := l.store.Unpack(ctx, l.d.Base); err != nil {
		return err
	}
	for _, n := range l.tree.notices {
		l.d.Notice(n)
	}
	if err := l.snapshot(ctx); err != nil {
		return err
	}
	return l.createImage(ctx)
}

// snapshot packs the directory into a layer and concurrently unpacks it into the
// layer's snapshot. After an error the release of the lease removes both.
func (l *layering) snapshot(ctx context.Context) error {
	sn := l.store.ctrd.SnapshotService(l.store.snapshotter)
	key := fmt.Sprintf("bottle-derive-%d", time.Now().UnixNano())
	mounts, err := sn.Prepare(ctx, key, identity.ChainID(l.config.RootFS.DiffIDs).String())
	if err != nil {
		return fmt.Errorf("create snapshot %s: %w", key, err)
	}
	err = withUnpacker(mounts, func(u *unpacker) error {
		err := l.write(ctx, u)
		if errors.Is(kindOf(err), ErrNoSpace) {
			l.empty(u.root)
		}
		return err
	})
	if err != nil {
		return err
	}
	chain := identity.ChainID(append(slices.Clone(l.config.RootFS.DiffIDs), l.diffID)).String()
	if err = sn.Commit(ctx, chain, key); errdefs.IsAlreadyExists(err) {
		err = sn.Remove(ctx, key)
	}
	if err != nil {
		return fmt.Errorf("commit snapshot %s: %w", chain, err)
	}
	return nil
}

// empty removes the files of an unfinished snapshot: the daemon needs some disk
// space to remove the snapshot itself.
func (l *layering) empty(root *os.File) {
	// The base may have symbolic links in this path.
	fd, err := unix.Openat2(int(root.Fd()), l.d.Target, &unix.OpenHow{Flags: unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return
	}
	target := os.NewFile(uintptr(fd), l.d.Target)
	defer func() { _ = target.Close() }()
	names, _ := target.Readdirnames(-1)
	for _, name := range names {
		_ = os.RemoveAll(below(target, name)) // otherwise removed with the snapshot
	}
}

// withUnpacker calls fn with an unpacker for a snapshot. Like containerd's unpacking,
// it writes directly into an overlay's upper directory. Other mounts are detached,
// so that they end with this process even if it is killed.
func withUnpacker(mounts []mount.Mount, fn func(*unpacker) error) (err error) {
	upper, lower := overlayDirs(mounts)
	root, err := os.Open(upper)
	if err != nil { // not an overlay, or not accessible
		lower = nil
		if root, err = detached(mounts); err != nil {
			return fmt.Errorf("mount the snapshot: %w", err)
		}
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return fn(&unpacker{root: root, lower: lower})
}

// overlayDirs returns an overlay's upper directory and its lower directories, topmost
// first.
func overlayDirs(mounts []mount.Mount) (upper string, lower []string) {
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		return "", nil
	}
	for _, o := range mounts[0].Options {
		if dir, is := strings.CutPrefix(o, "upperdir="); is {
			upper = dir
		}
		if dirs, is := strings.CutPrefix(o, "lowerdir="); is {
			lower = strings.Split(dirs, ":")
		}
	}
	return upper, lower
}

// detached mounts a snapshot for as long as the returned directory is open.
func detached(mounts []mount.Mount) (root *os.File, err error) {
	dir, err := os.MkdirTemp("", "bottle-derive-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := mount.All(mounts, dir); err != nil {
		return nil, err
	}
	root, err = os.Open(dir)
	return root, errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH))
}

// write packs the directory and sends its tar to the content store, compressed, to
// the digester, and its entries to the snapshot.
func (l *layering) write(ctx context.Context, u *unpacker) (err error) {
	uid, gid, err := l.d.Owner(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	target := strings.TrimPrefix(path.Clean(l.d.Target), "/")
	if err := u.makeParents(path.Dir(target)); err != nil {
		return fmt.Errorf("create the parent directory of %s: %w", l.d.Target, err)
	}
	cs := l.store.ctrd.ContentStore()
	w, err := content.OpenWriter(ctx, cs, content.WithRef(fmt.Sprintf("bottle-derive-%d", time.Now().UnixNano())))
	if err != nil {
		return fmt.Errorf("open content writer: %w", err)
	}
	defer func() {
		if cerr := w.Close(); cerr != nil && err == nil {
			err = cerr
		}
	}()
	out := newGate(l.d.Progress)
	plain := digest.SHA256.Digester()
	packed := &counter{w: w}
	f := newFanout(ctx)
	f.to(func(_ context.Context, r io.Reader) error {
		_, err := io.Copy(plain.Hash(), r)
		return err
	})
	f.toChunks(func(ctx context.Context, chunks <-chan []byte) error { return compress(ctx, packed, chunks) })
	f.toPieces(u.take, u.end)
	var reported time.Time
	p := &packer{
		tree: l.tree, out: f, target: target, uid: uid, gid: gid, notice: l.d.Notice,
		progress: func(done int64) {
			if now := time.Now(); now.Sub(reported) > progressEvery {
				reported = now
				out.report(Progress{ID: l.d.Dir, State: StateActive, Done: done, Total: max(l.tree.bytes, done)})
			}
		},
	}
	pack := func(ctx context.Context) error {
		return asuser.Run(l.d.Caller, func() error { return p.pack(ctx) })
	}
	if err = f.run(pack); err == nil {
		out.report(Progress{ID: l.d.Dir, State: StateDone, Done: p.done, Total: p.done})
	}
	out.close(err == nil)
	if err != nil {
		return err
	}
	l.diffID = plain.Digest()
	// containerd computes the digest of the compressed layer.
	l.layer = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: w.Digest(), Size: packed.n}
	err = w.Commit(ctx, l.layer.Size, l.layer.Digest, content.WithLabels(map[string]string{"containerd.io/uncompressed": l.diffID.String()}))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit layer: %w", err)
	}
	return nil
}

// progressEvery is the interval of progress reports while packing.
const progressEvery = 100 * time.Millisecond

// compress writes each chunk as a separate zstd frame (RFC 8878, section 3), so that
// all CPUs compress in parallel. Every write to the content store is a message to the
// daemon, so writes are large.
func compress(ctx context.Context, packed io.Writer, chunks <-chan []byte) error {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false)) // the digest covers the content
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	frames := make(chan chan []byte, runtime.GOMAXPROCS(0)) // in the order of the chunks
	var used sync.Pool
	g.Go(func() error {
		defer close(frames)
		for {
			select {
			case chunk, more := <-chunks:
				if !more {
					return nil
				}
				frame := make(chan []byte, 1)
				select {
				case frames <- frame:
				case <-ctx.Done():
					return ctx.Err()
				}
				g.Go(func() error {
					buf, _ := used.Get().([]byte)
					frame <- z.EncodeAll(chunk, buf[:0])
					return nil
				})
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	})
	g.Go(func() error {
		for frame := range frames {
			buf := <-frame
			if _, err := packed.Write(buf); err != nil {
				return fmt.Errorf("write layer: %w", err)
			}
			used.Put(buf) //nolint:staticcheck // allocating a slice header is cheaper than a buffer
		}
		return nil
	})
	return g.Wait()
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
