package main

import (
	"archive/tar"
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageName is the annotation with the image's name for containerd's importer.
const imageName = "io.containerd.image.name"

// write creates the archive, an OCI image layout in a tar file, atomically.
func (s *spec) write() error {
	out, err := os.CreateTemp(filepath.Dir(s.out), "."+filepath.Base(s.out)+".")
	if err != nil {
		return fmt.Errorf("create archive: %w", err)
	}
	err = errors.Join(s.writeTo(out), out.Close())
	if err == nil {
		err = errors.Join(os.Chmod(out.Name(), 0o644), os.Rename(out.Name(), s.out))
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	return nil
}

func (s *spec) writeTo(out io.Writer) (err error) {
	spools, err := os.MkdirTemp(filepath.Dir(s.out), "."+filepath.Base(s.out)+".layers-")
	if err != nil {
		return fmt.Errorf("create a directory for layers: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(spools)) }()
	layers, err := s.buildLayers(spools)
	if err != nil {
		return err
	}
	entries, err := s.entries(layers)
	if err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(out, 1<<20)
	w := tar.NewWriter(buffered)
	for _, e := range entries {
		if err := e.write(w); err != nil {
			return fmt.Errorf("write %s to the archive: %w", e.name, err)
		}
	}
	if err := errors.Join(w.Close(), buffered.Flush()); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

// buildLayers packs the directories into files in spools.
func (s *spec) buildLayers(spools string) ([]layer, error) {
	var layers []layer
	for _, src := range s.layers {
		l, err := s.buildLayer(src, spools)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	return layers, nil
}

func (s *spec) buildLayer(src source, spools string) (l layer, err error) {
	if !src.dir {
		return tarLayer(src.path)
	}
	spool, err := os.CreateTemp(spools, "layer-")
	if err != nil {
		return layer{}, fmt.Errorf("create a file for layer %s: %w", src.path, err)
	}
	defer func() { err = errors.Join(err, spool.Close()) }()
	return dirLayer(src.path, spool, s.notice)
}

// entry is a file of the archive with either data or a layer's content.
type entry struct {
	name  string
	data  []byte
	layer *layer
}

// entries returns all files of the layout in lexical order, each blob once.
func (s *spec) entries(layers []layer) ([]entry, error) {
	blobs := map[string]entry{}
	var descs []ocispec.Descriptor
	var diffs []digest.Digest
	for _, l := range layers {
		descs, diffs = append(descs, l.desc), append(diffs, l.diffID)
		blobs[blobName(l.desc.Digest)] = entry{name: blobName(l.desc.Digest), layer: &l}
	}
	config, err := addBlob(blobs, ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: s.platform, Config: s.config, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: diffs}})
	if err != nil {
		return nil, err
	}
	version := specs.Versioned{SchemaVersion: 2}
	manifest, err := addBlob(blobs, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: version, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: descs})
	if err != nil {
		return nil, err
	}
	manifest.Platform = &s.platform
	manifest.Annotations = map[string]string{imageName: s.ref, ocispec.AnnotationRefName: s.tag}
	index, err := json.Marshal(ocispec.Index{Versioned: version, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{manifest}})
	if err != nil {
		return nil, fmt.Errorf("encode the index: %w", err)
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, fmt.Errorf("encode the layout: %w", err)
	}
	all := []entry{{name: "blobs/"}, {name: "blobs/sha256/"},
		{name: ocispec.ImageIndexFile, data: index}, {name: ocispec.ImageLayoutFile, data: layout}}
	for _, b := range blobs {
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	return all, nil
}

func blobName(d digest.Digest) string { return path.Join("blobs", d.Algorithm().String(), d.Encoded()) }

// addBlob adds v as a JSON blob and returns its descriptor.
func addBlob(blobs map[string]entry, mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	d := digest.FromBytes(data)
	blobs[blobName(d)] = entry{name: blobName(d), data: data}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}, nil
}

func (e entry) write(w *tar.Writer) error {
	h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o444, Size: int64(len(e.data)),
		ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if strings.HasSuffix(e.name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o555
	}
	if e.layer != nil {
		h.Size = e.layer.desc.Size
		// The ustar format cannot express sizes of 8 GiB and more.
		h.Format = tar.FormatUnknown
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if e.layer != nil {
		return e.layer.copyTo(w)
	}
	_, err := io.Copy(w, bytes.NewReader(e.data))
	return err
}

// copyTo writes the layer's content and checks its digest again.
func (l *layer) copyTo(w io.Writer) error {
	f, err := os.Open(l.path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	hash := l.desc.Digest.Verifier()
	if _, err := io.Copy(io.MultiWriter(w, hash), f); err != nil {
		return err
	}
	if !hash.Verified() {
		return fmt.Errorf("%s changed while it was read", l.path)
	}
	return nil
}
