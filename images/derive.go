package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	store "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Labels of a derived image.
const (
	labelFingerprint = "bottle.derived.fingerprint" // of folder and base; absent: not to be trusted
	labelFolder      = "bottle.derived.folder"
	labelBase        = "bottle.derived.base" // name of the image below
)

// layoutVersion changes when the same folder would give another layer.
const layoutVersion = "1"

// Derivation says what a derived image is made of.
type Derivation struct {
	Ref    string // name of the derived image, normalised
	Base   string // name of the image below it, normalised; in the store
	Folder string // absolute; only read
	Target string // absolute, inside: where the folder is, and where commands begin
	// Owner finds the ids that own everything; asked only when a layer is made.
	Owner func(context.Context) (uid, gid int, err error)
	// Notice is told of what is left out, and Progress how far it is; both may
	// be nil.
	Notice   func(string)
	Progress ProgressFunc
}

// Derive makes an image of a base and a folder, unpacked and ready, and tells
// whether it had to: a folder that has not changed since costs a look at it. No
// symbolic link in the folder is followed. The error wraps ErrMissing,
// ErrPlatform or ErrNoSpace; after an error the store is as it was.
func (s *Store) Derive(ctx context.Context, d Derivation) (made bool, err error) {
	ctx = namespaces.WithNamespace(ctx, s.namespace)
	if d.Notice == nil {
		d.Notice = func(string) {}
	}
	if made, err = s.derive(ctx, d); err != nil {
		if errors.Is(kindOf(err), ErrNoSpace) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return false, fmt.Errorf("make image %s of %s: %w", d.Ref, d.Folder, err)
	}
	return made, nil
}

func (s *Store) derive(ctx context.Context, d Derivation) (made bool, err error) {
	base, err := s.get(ctx, d.Base)
	if err != nil {
		return false, err
	}
	desc, manifest, err := s.manifest(ctx, base.Target())
	if err != nil {
		return false, err
	}
	began := time.Now()
	t, err := readTree(d.Folder)
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
	// A change in the same tick of the clock as the look could not be told from
	// what was packed: then the next run packs again.
	if t.newest.After(began.Add(-clockTick)) {
		fingerprint = ""
	}
	l := &layering{store: s, d: d, tree: t, manifest: manifest, fingerprint: fingerprint}
	return true, s.leased(ctx, "derive "+d.Ref, l.make)
}

// clockTick is more than the kernel's clock for file times may lag behind
// (CONFIG_HZ=100: 10 ms).
const clockTick = 50 * time.Millisecond

// layering is the making of one derived image.
type layering struct {
	store       *Store
	d           Derivation
	tree        *tree
	manifest    ocispec.Manifest // the base's
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
	return l.name(ctx)
}

// snapshot packs the folder into a layer and, at the same time, unpacks it into
// the snapshot that the layer stands for. After an error the lease's end removes
// both.
func (l *layering) snapshot(ctx context.Context) error {
	sn := l.store.ctrd.SnapshotService(l.store.snapshotter)
	key := fmt.Sprintf("bottle-derive-%d", time.Now().UnixNano())
	mounts, err := sn.Prepare(ctx, key, identity.ChainID(l.config.RootFS.DiffIDs).String())
	if err != nil {
		return fmt.Errorf("make snapshot %s: %w", key, err)
	}
	err = within(mounts, func(u *unpacker) error {
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

// empty removes what was written into a snapshot that will not be used: the
// daemon needs some space to remove the snapshot.
func (l *layering) empty(root *os.File) {
	// The base may have symbolic links on the way.
	fd, err := unix.Openat2(int(root.Fd()), l.d.Target, &unix.OpenHow{Flags: unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return
	}
	target := os.NewFile(uintptr(fd), l.d.Target)
	defer func() { _ = target.Close() }()
	names, _ := target.Readdirnames(-1)
	for _, name := range names {
		_ = os.RemoveAll(below(target, name)) // else it goes with the snapshot
	}
}

// within calls fn with what writes into a snapshot. As containerd does when it
// unpacks, it goes round an overlay's mount. Another mount is at no place of the
// host's and ends with this process, even with a killed one.
func within(mounts []mount.Mount, fn func(*unpacker) error) (err error) {
	upper, lower := overlayDirs(mounts)
	root, err := os.Open(upper)
	if err != nil { // no overlay's, or out of sight
		lower = nil
		if root, err = detached(mounts); err != nil {
			return fmt.Errorf("mount the snapshot: %w", err)
		}
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return fn(&unpacker{root: root, lower: lower})
}

// overlayDirs finds where an overlay keeps what is written to it, and the layers
// below, the topmost first.
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

// detached mounts a snapshot for as long as the folder that it returns is open.
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

// write sends the folder's tar to the content store, compressed, to its digest
// and to the snapshot.
func (l *layering) write(ctx context.Context, u *unpacker) (err error) {
	uid, gid, err := l.d.Owner(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.close()) }()
	target := strings.TrimPrefix(path.Clean(l.d.Target), "/")
	if err := u.makeParents(path.Dir(target)); err != nil {
		return fmt.Errorf("make the folder for %s: %w", l.d.Target, err)
	}
	cs := l.store.ctrd.ContentStore()
	w, err := content.OpenWriter(ctx, cs, content.WithRef(fmt.Sprintf("bottle-derive-%d", time.Now().UnixNano())))
	if err != nil {
		return fmt.Errorf("open the content store: %w", err)
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
	var told time.Time
	p := &packer{
		tree: l.tree, out: f, target: target, uid: uid, gid: gid, notice: l.d.Notice,
		progress: func(done int64) {
			if now := time.Now(); now.Sub(told) > progressEvery {
				told = now
				out.tell(Progress{ID: l.d.Folder, State: StateActive, Done: done, Total: max(l.tree.bytes, done)})
			}
		},
	}
	if err = f.run(p.pack); err == nil {
		out.tell(Progress{ID: l.d.Folder, State: StateDone, Done: p.done, Total: p.done})
	}
	out.close(err == nil)
	if err != nil {
		return err
	}
	l.diffID = plain.Digest()
	// Until then containerd alone knows the packed layer's digest.
	l.layer = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerZstd, Digest: w.Digest(), Size: packed.n}
	err = w.Commit(ctx, l.layer.Size, l.layer.Digest, content.WithLabels(map[string]string{"containerd.io/uncompressed": l.diffID.String()}))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit the layer: %w", err)
	}
	return nil
}

// progressEvery is how often a packer tells how far it is.
const progressEvery = 100 * time.Millisecond

// compress writes each chunk as a frame of its own (RFC 8878, 3), so that as many are
// compressed at once as there are processors. Every write to the content store is a
// message to the daemon, so that they have to be large.
func compress(ctx context.Context, packed io.Writer, chunks <-chan []byte) error {
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderCRC(false)) // digests check more
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	frames := make(chan chan []byte, runtime.GOMAXPROCS(0)) // in the order of their chunks
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
				return fmt.Errorf("write the layer: %w", err)
			}
			used.Put(buf) //nolint:staticcheck // a slice's header is small beside what it saves
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

// name writes configuration and manifest, and gives the image its name. What
// had the name before is collected.
func (l *layering) name(ctx context.Context) error {
	now := time.Now().UTC()
	base := l.manifest
	base.Layers = slices.Clone(base.Layers)
	for i := range base.Layers {
		base.Layers[i].MediaType = ociType(base.Layers[i].MediaType)
	}
	l.config.RootFS.DiffIDs = append(slices.Clone(l.config.RootFS.DiffIDs), l.diffID)
	l.config.History = append(slices.Clone(l.config.History), ocispec.History{Created: &now, CreatedBy: "bottle run --cwd", Comment: l.d.Folder})
	l.config.Config.WorkingDir, l.config.Created = l.d.Target, &now
	config, err := l.put(ctx, ocispec.MediaTypeImageConfig, l.config, map[string]string{
		labelSnapshot + l.store.snapshotter: identity.ChainID(l.config.RootFS.DiffIDs).String(),
	})
	if err != nil {
		return err
	}
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: append(base.Layers, l.layer), Annotations: base.Annotations,
	}
	refs := map[string]string{"containerd.io/gc.ref.content.config": config.Digest.String(), labelChecked: checkedAll}
	for i, layer := range m.Layers {
		refs[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = layer.Digest.String()
	}
	manifest, err := l.put(ctx, ocispec.MediaTypeImageManifest, m, refs)
	if err != nil {
		return err
	}
	return l.store.setImage(ctx, store.Image{Name: l.d.Ref, Target: manifest, Labels: l.labels()})
}

func (l *layering) labels() map[string]string {
	labels := map[string]string{labelFingerprint: l.fingerprint, labelBase: l.d.Base, labelFolder: l.d.Folder}
	// A label's name and value may have 4096 bytes (containerd, pkg/labels).
	maps.DeleteFunc(labels, func(k, v string) bool { return v == "" || len(k)+len(v) > 4096 })
	return labels
}

// ociType is the image-spec's name of a docker media type of layers.
func ociType(t string) string {
	switch t {
	case store.MediaTypeDockerSchema2Layer:
		return ocispec.MediaTypeImageLayer
	case store.MediaTypeDockerSchema2LayerGzip:
		return ocispec.MediaTypeImageLayerGzip
	case store.MediaTypeDockerSchema2LayerZstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return t
}

// put stores a JSON document.
func (l *layering) put(ctx context.Context, mediaType string, v any, labels map[string]string) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	err = content.WriteBlob(ctx, l.store.ctrd.ContentStore(), "bottle-derive-"+d.Digest.String(), bytes.NewReader(data), d, content.WithLabels(labels))
	if err != nil {
		return d, fmt.Errorf("store %s: %w", mediaType, err)
	}
	return d, nil
}

// setImage gives a name to an image, whatever had it.
func (s *Store) setImage(ctx context.Context, img store.Image) error {
	is := s.ctrd.ImageService()
	_, err := is.Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		if _, err = is.Update(ctx, img, "target", "labels"); err == nil {
			err = s.collect(ctx)
		}
	}
	if err != nil {
		return fmt.Errorf("name image %s: %w", img.Name, err)
	}
	return nil
}

// collectTime is how long a launch waits for what an image before had to be freed.
// Containerd goes on when nobody waits; thousands of files may take it seconds.
const collectTime = 200 * time.Millisecond

// collect has containerd free what nothing refers to any more: it does so when
// a lease is removed synchronously.
func (s *Store) collect(ctx context.Context) error {
	_, release, err := s.lease(ctx, "collect")
	if err != nil {
		return err
	}
	return releaseSoon(release, collectTime)
}
