package known

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// counted is a content store of blobs by digest, in one namespace.
type counted struct {
	content.Store
	data  map[digest.Digest][]byte
	reads int
	open  int
}

type countedReader struct {
	reader
	s *counted
}

func (r countedReader) Close() error { r.s.open--; return nil }

var errNone = errors.New("none")

func (s *counted) ReaderAt(ctx context.Context, d ocispec.Descriptor) (content.ReaderAt, error) {
	if ns, _ := namespaces.Namespace(ctx); ns != "ns" {
		return nil, errNone
	}
	s.reads++
	s.open++
	return countedReader{reader{bytes.NewReader(s.data[d.Digest])}, s}, nil
}

func describe(data []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
}

// TestBlobs: a small blob is read from the store once. A large one, and one whose content is not
// what its name says, are read each time, and another namespace does not see what is kept.
func TestBlobs(t *testing.T) {
	small, large := []byte(`{"a": 1}`), bytes.Repeat([]byte("x"), maxBlob+1)
	damaged := describe([]byte(`{"b": 2}`))
	s := &counted{data: map[digest.Digest][]byte{
		describe(small).Digest: small, describe(large).Digest: large, damaged.Digest: []byte(`{"b": 3}`),
	}}
	b := &blobs{Store: s}
	ctx := namespaces.WithNamespace(t.Context(), "ns")
	for name, c := range map[string]struct {
		d     ocispec.Descriptor
		want  []byte
		reads int // of three
	}{
		"small":   {describe(small), small, 1},
		"large":   {describe(large), large, 3},
		"damaged": {damaged, s.data[damaged.Digest], 3},
	} {
		s.reads = 0
		for range 3 {
			got, err := content.ReadBlob(ctx, b, c.d)
			if err != nil || !bytes.Equal(got, c.want) {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
		if s.reads != c.reads || s.open != 0 {
			t.Errorf("%s: read from the store %d times, want %d; %d readers left open", name, s.reads, c.reads, s.open)
		}
	}
	if _, err := content.ReadBlob(namespaces.WithNamespace(t.Context(), "other"), b, describe(small)); !errors.Is(err, errNone) {
		t.Errorf("in another namespace: %v", err)
	}
	for i := range maxBlobs * 3 {
		data := []byte{byte(i), 'x'}
		s.data[describe(data).Digest] = data
		if got, err := content.ReadBlob(ctx, b, describe(data)); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("blob %d: %q, %v", i, got, err)
		}
		if len(b.kept) > maxBlobs {
			t.Fatalf("%d blobs are kept", len(b.kept))
		}
	}
}

type noRecords struct{ containers.Store }

func (noRecords) Get(context.Context, string) (containers.Container, error) {
	return containers.Container{}, errNone
}

// TestRecord: a record is known in its context only, and only that one.
func TestRecord(t *testing.T) {
	s := &records{noRecords{}}
	ctx := WithRecord(t.Context(), containers.Container{ID: "a", Image: "i"})
	if r, err := s.Get(ctx, "a"); err != nil || r.Image != "i" {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := s.Get(ctx, "b"); !errors.Is(err, errNone) {
		t.Errorf("another container: %v", err)
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, errNone) {
		t.Errorf("another context: %v", err)
	}
}
