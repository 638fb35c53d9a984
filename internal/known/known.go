// Package known answers what a process would ask containerd again, of what it knows already: small
// blobs, whose names are hashes of their content, and the record of a container that it has just
// created.
package known

import (
	"bytes"
	"context"
	"io"
	"sync"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
)

// Stores are in place of two of a connection's stores.
type Stores struct {
	blobs   blobs
	records records
}

// Services makes a new connection use the stores. They work after Connected.
func (s *Stores) Services() []containerd.ServicesOpt {
	return []containerd.ServicesOpt{containerd.WithContentStore(&s.blobs), containerd.WithContainerStore(&s.records)}
}

// Connected gives the stores the connection that was made with them.
func (s *Stores) Connected(conn grpc.ClientConnInterface) {
	s.blobs.Store = proxy.NewContentStore(conn)
	s.records.Store = containerd.NewRemoteContainerStore(containersapi.NewContainersClient(conn))
}

const (
	maxBlob  = 256 << 10 // bytes; an index, manifest or configuration is smaller
	maxBlobs = 32
)

// blobs keeps the small blobs that were read. One that was removed meanwhile is still read: its
// content is what its name says.
type blobs struct {
	content.Store
	mu   sync.Mutex
	kept map[blob][]byte
}

// blob identifies a blob: a namespace does not see those of another one.
type blob struct {
	namespace string
	digest    digest.Digest
}

// ReaderAt implements content.Provider.
func (b *blobs) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	namespace, _ := namespaces.Namespace(ctx)
	key := blob{namespace, d.Digest}
	b.mu.Lock()
	data, ok := b.kept[key]
	b.mu.Unlock()
	if ok {
		return reader{bytes.NewReader(data)}, nil
	}
	r, err := b.Store.ReaderAt(ctx, d)
	if err != nil || r.Size() > maxBlob {
		return r, err
	}
	data = make([]byte, r.Size())
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, r.Size()), data); err != nil || digest.FromBytes(data) != d.Digest {
		return r, nil // whoever reads it gets the error, or the content as it is
	}
	if err := r.Close(); err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.kept == nil || len(b.kept) >= maxBlobs {
		b.kept = map[blob][]byte{}
	}
	b.kept[key] = data
	return reader{bytes.NewReader(data)}, nil
}

type reader struct{ *bytes.Reader }

func (reader) Close() error { return nil }

type recordKey struct{}

// WithRecord returns a context in whose calls a container's record is known. It must not be used
// after the record could have changed.
func WithRecord(ctx context.Context, r containers.Container) context.Context {
	return context.WithValue(ctx, recordKey{}, r)
}

type records struct{ containers.Store }

// Get implements containers.Store.
func (s *records) Get(ctx context.Context, id string) (containers.Container, error) {
	if r, ok := ctx.Value(recordKey{}).(containers.Container); ok && r.ID == id {
		return r, nil
	}
	return s.Store.Get(ctx, id)
}
