package main

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	_ "crypto/sha256" // used by go-digest
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// layer is a file with a layer's content, its descriptor for the manifest and
// its diff ID for the configuration.
type layer struct {
	path   string
	desc   ocispec.Descriptor
	diffID digest.Digest
}

// tarLayer describes a tar file. It reads the file once for its digests; writing
// the archive reads it again.
func tarLayer(path string) (layer, error) {
	f, err := os.Open(path)
	if err != nil {
		return layer{}, fmt.Errorf("open layer: %w", err)
	}
	defer func() { _ = f.Close() }() // read only
	packed, plain := digest.SHA256.Digester(), digest.SHA256.Digester()
	counted := &counter{r: io.TeeReader(f, packed.Hash())}
	r := bufio.NewReaderSize(counted, 1<<20)
	mediaType, content, err := openLayer(r)
	if err != nil {
		return layer{}, fmt.Errorf("read layer %s: %w", path, err)
	}
	if err := checkTar(io.TeeReader(content, plain.Hash())); err != nil {
		return layer{}, fmt.Errorf("read layer %s: %w", path, err)
	}
	// gzip's reader may stop before the end of the file.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return layer{}, fmt.Errorf("read layer %s: %w", path, err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: packed.Digest(), Size: counted.n}
	return layer{path: path, desc: desc, diffID: plain.Digest()}, nil
}

// openLayer detects a layer's compression by its first bytes.
func openLayer(r *bufio.Reader) (mediaType string, content io.Reader, err error) {
	magic, err := r.Peek(4)
	switch {
	case err != nil:
		return "", nil, fmt.Errorf("not a tar file: %w", err)
	case magic[0] == 0x1f && magic[1] == 0x8b: // RFC 1952
		content, err = gzip.NewReader(r)
		return ocispec.MediaTypeImageLayerGzip, content, err
	case string(magic) == "\x28\xb5\x2f\xfd": // RFC 8878
		return "", nil, errors.New("unsupported compression zstd: use a plain or gzipped tar file")
	default:
		return ocispec.MediaTypeImageLayer, r, nil
	}
}

// checkTar reads r to its end and checks that it is a tar archive.
func checkTar(r io.Reader) error {
	entries := tar.NewReader(r)
	for {
		if _, err := entries.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	_, err := io.Copy(io.Discard, r) // the digest includes trailing padding
	return err
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// dirLayer writes the directory's content as a tar archive to the file.
func dirLayer(dir string, spool *os.File, notice func(string)) (layer, error) {
	hash := digest.SHA256.Digester()
	buffered := bufio.NewWriterSize(io.MultiWriter(spool, hash.Hash()), 1<<20)
	p := &packer{root: dir, out: tar.NewWriter(buffered), links: map[inode]string{}, notice: notice}
	if err := filepath.WalkDir(dir, p.add); err != nil {
		return layer{}, fmt.Errorf("pack layer %s: %w", dir, err)
	}
	if err := errors.Join(p.out.Close(), buffered.Flush()); err != nil {
		return layer{}, fmt.Errorf("pack layer %s: %w", dir, err)
	}
	size, err := spool.Seek(0, io.SeekCurrent)
	if err != nil {
		return layer{}, fmt.Errorf("pack layer %s: %w", dir, err)
	}
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: hash.Digest(), Size: size}
	return layer{path: spool.Name(), desc: desc, diffID: hash.Digest()}, nil
}

// packer writes a directory's files to a tar archive in lexical order.
type packer struct {
	root   string
	out    *tar.Writer
	links  map[inode]string
	notice func(string)
}

// inode identifies a file that may have more than one name.
type inode struct{ dev, ino uint64 }

func (p *packer) add(path string, entry fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	name, err := filepath.Rel(p.root, path)
	if err != nil {
		return err
	}
	info, err := entry.Info()
	if err != nil {
		return err
	}
	if name == "." {
		if !info.IsDir() {
			return errors.New("not a directory")
		}
		return nil
	}
	if info.Mode()&(fs.ModeDevice|fs.ModeSocket) != 0 {
		p.notice(fmt.Sprintf("skipping %s: device or socket", path))
		return nil
	}
	h, err := p.header(path, name, info)
	if err != nil {
		return err
	}
	if err := p.out.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if h.Typeflag == tar.TypeReg && h.Size > 0 {
		return p.content(path)
	}
	return nil
}

func (p *packer) header(path, name string, info fs.FileInfo) (*tar.Header, error) {
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return nil, err
	}
	h.Name = filepath.ToSlash(name)
	if info.IsDir() {
		h.Name += "/"
	}
	// User names and access times depend on the machine, not on the content.
	h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	p.hardlink(h, info)
	if h.Typeflag == tar.TypeReg {
		return h, capability(path, h)
	}
	return h, nil
}

// hardlink turns every further name of a file into a link to the first.
func (p *packer) hardlink(h *tar.Header, info fs.FileInfo) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Nlink < 2 || h.Typeflag != tar.TypeReg {
		return
	}
	id := inode{stat.Dev, stat.Ino}
	first, seen := p.links[id]
	if !seen {
		p.links[id] = h.Name
		return
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
}

// capability keeps a program's file capabilities (capabilities(7)). Other
// extended attributes are dropped.
func capability(path string, h *tar.Header) error {
	const name = "security.capability"
	value := make([]byte, 64) // at most 24 bytes are used
	n, err := unix.Lgetxattr(path, name, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the capabilities of %s: %w", path, err)
	}
	h.PAXRecords = map[string]string{"SCHILY.xattr." + name: string(value[:n])}
	return nil
}

func (p *packer) content(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	if _, err := io.Copy(p.out, f); err != nil {
		return fmt.Errorf("%s: %w", strings.TrimPrefix(path, p.root+"/"), err)
	}
	return nil
}
