package images

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// packer writes a tree as a layer's tar, below one path of the image and owned by one
// user.
type packer struct {
	tree     *tree
	out      *fanout
	target   string // path in the image, without the leading slash
	uid, gid int
	links    map[inode]string
	notice   func(string)
	progress func(done int64)
	done     int64
}

// inode identifies a file that may have several names.
type inode struct{ dev, ino uint64 }

func (p *packer) pack(ctx context.Context) error {
	p.links = map[inode]string{}
	for i := range p.tree.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := p.add(&p.tree.entries[i])
		if isDenied(err) { // since the scan
			return fmt.Errorf("%w: %s", ErrUnreadable, p.tree.entries[i].name)
		}
		if err != nil {
			return fmt.Errorf("pack %s: %w", p.tree.entries[i].name, err)
		}
	}
	return tar.NewWriter(p.out).Close() // writes the end of the archive
}

func (p *packer) add(e *treeEntry) error {
	h := &tar.Header{
		Name: path.Join(p.target, e.name), Mode: int64(e.stat.Mode & 0o7777), Uid: p.uid, Gid: p.gid,
		ModTime: time.Unix(e.stat.Mtim.Sec, 0),
	}
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		return p.addDir(e, h)
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, e.link, 0o777
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFREG:
		return p.addFile(e, h)
	}
	return p.entry(h)
}

// entry writes an entry's header. Each uses a separate tar.Writer, so that the
// content can bypass it.
func (p *packer) entry(h *tar.Header) error {
	if err := tar.NewWriter(p.out).WriteHeader(h); err != nil {
		return err
	}
	return p.out.put(piece{header: h})
}

func (p *packer) addDir(e *treeEntry, h *tar.Header) error {
	f, err := openDirectory(p.tree.root, e.name)
	if changedSince(err) {
		p.notice(e.name + " is not included: it was removed during packing")
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := xattrs(int(f.Fd()), h); err != nil {
		return err
	}
	return p.entry(h)
}

func (p *packer) addFile(e *treeEntry, h *tar.Header) error {
	// O_NONBLOCK: the file may have been replaced by a FIFO.
	fd, err := openFD(p.tree.root, e.name, unix.O_NONBLOCK)
	if changedSince(err) {
		p.notice(e.name + " is not included: it was removed during packing")
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		p.notice(e.name + " is not included: it was replaced during packing")
		return nil
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if st.Nlink > 1 && p.hardlink(&st, h) {
		return p.entry(h)
	}
	if err := xattrs(fd, h); err != nil {
		return err
	}
	if err := p.entry(h); err != nil {
		return err
	}
	return p.content(e, fd, &st)
}

// hardlink turns further names of a file into hard links to the first.
func (p *packer) hardlink(st *unix.Stat_t, h *tar.Header) bool {
	id := inode{st.Dev, st.Ino}
	first, seen := p.links[id]
	if !seen {
		p.links[id] = h.Name
		return false
	}
	h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
	return true
}

// bufSize is the maximum size of reads, in bytes.
const bufSize = 256 << 10

// content copies the number of bytes in the header. If the file has become shorter,
// the rest is filled with zeros, as in tar(1). Zeros in sparse files become holes.
func (p *packer) content(e *treeEntry, fd int, st *unix.Stat_t) error {
	sparse := st.Blocks*512 < st.Size // stat(2) counts blocks of 512 bytes
	for left := st.Size; left > 0; {
		buf, err := p.out.space(min(left, bufSize))
		if err != nil {
			return err
		}
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			p.notice(fmt.Sprintf("%s became shorter during packing: its last %d bytes are zeros", e.name, left))
			if err := p.zeros(left); err != nil {
				return err
			}
			break
		}
		part := piece{data: buf[:n:n]}
		if sparse && allZero(part.data) {
			part = piece{zeros: int64(n)}
		}
		if err := errors.Join(p.out.fill(n), p.out.put(part)); err != nil {
			return err
		}
		left -= int64(n)
		p.done += int64(n)
		p.progress(p.done)
	}
	return p.pad(-st.Size & (blockSize - 1))
}

// blockSize is the size that contents are padded to in a tar, in bytes (pax(1)).
const blockSize = 512

func (p *packer) pad(n int64) error {
	_, err := p.out.Write(zeroBytes[:n])
	return err
}

// zeros writes n zero bytes.
func (p *packer) zeros(n int64) error {
	for left := n; left > 0; left -= min(left, bufSize) {
		if err := p.pad(min(left, bufSize)); err != nil {
			return err
		}
	}
	return p.out.put(piece{zeros: n})
}

var zeroBytes [bufSize]byte

func allZero(p []byte) bool { return bytes.Equal(p, zeroBytes[:len(p)]) }

// changedSince reports whether an error means that the file was removed or replaced
// after the scan.
func changedSince(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO)
}

// paxAttribute is the prefix of PAX records for extended attributes.
const paxAttribute = "SCHILY.xattr."

// maxAttribute is the maximum size of an attribute's value, in bytes (XATTR_SIZE_MAX
// in linux/limits.h).
const maxAttribute = 64 << 10

// xattrs adds the attributes that are portable: user attributes and file
// capabilities. Others (ACLs with host ids, labels of the host's security modules)
// have no meaning in the image.
func xattrs(fd int, h *tar.Header) error {
	size, err := unix.Flistxattr(fd, nil)
	if err != nil || size == 0 {
		return noAttributes(err)
	}
	names := make([]byte, size)
	if size, err = unix.Flistxattr(fd, names); err != nil {
		return noAttributes(err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:size]), "\x00"), "\x00") {
		if !strings.HasPrefix(name, "user.") && name != "security.capability" {
			continue
		}
		value := make([]byte, maxAttribute)
		n, err := unix.Fgetxattr(fd, name, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read attribute %s: %w", name, err)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[paxAttribute+name] = string(value[:n])
	}
	return nil
}

func noAttributes(err error) error {
	if err == nil || errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ERANGE) {
		return nil
	}
	return fmt.Errorf("list attributes: %w", err)
}
