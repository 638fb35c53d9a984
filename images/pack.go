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

// packer writes a tree as a layer's tar: everything owned by one user, at one
// place of the image.
type packer struct {
	tree     *tree
	out      *fanout
	target   string // without the leading slash
	uid, gid int
	links    map[inode]string
	notice   func(string)
	progress func(done int64)
	done     int64
}

// inode identifies a file that may have more than one name.
type inode struct{ dev, ino uint64 }

func (p *packer) pack(ctx context.Context) error {
	p.links = map[inode]string{}
	for i := range p.tree.entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := p.add(&p.tree.entries[i]); err != nil {
			return fmt.Errorf("pack %s: %w", p.tree.entries[i].name, err)
		}
	}
	return tar.NewWriter(p.out).Close() // the end of an archive
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

// entry writes an entry's header. Each has a tar.Writer of its own, through which
// its content need not go.
func (p *packer) entry(h *tar.Header) error {
	if err := tar.NewWriter(p.out).WriteHeader(h); err != nil {
		return err
	}
	return p.out.put(piece{header: h})
}

func (p *packer) addDir(e *treeEntry, h *tar.Header) error {
	f, err := openBeneath(p.tree.root, e.name, unix.O_DIRECTORY)
	if changedMeanwhile(err) {
		p.notice(e.name + " is left out: it went while the folder was read")
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
	// O_NONBLOCK: what was a file may be a pipe now.
	fd, err := openFD(p.tree.root, e.name, unix.O_NONBLOCK)
	if changedMeanwhile(err) {
		p.notice(e.name + " is left out: it went while the folder was read")
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
		p.notice(e.name + " is left out: it became something else while the folder was read")
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

// hardlink turns a file's second name into a link to its first.
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

// bufSize is how much of a file is read at once at most, in bytes.
const bufSize = 256 << 10

// content copies as much as the header promised; of a file that has become
// shorter the rest is zeros, as with tar(1). Of a file with holes zeros become
// holes again.
func (p *packer) content(e *treeEntry, fd int, st *unix.Stat_t) error {
	sparse := st.Blocks*512 < st.Size // blocks are of 512 bytes, stat(2)
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
			p.notice(fmt.Sprintf("%s became shorter while it was read: its last %d bytes are zeros", e.name, left))
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

// blockSize is what a tar's contents are filled up to, in bytes (pax(1)).
const blockSize = 512

func (p *packer) pad(n int64) error {
	_, err := p.out.Write(zeroBytes[:n])
	return err
}

// zeros stands for what a file does not have any more.
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

// changedMeanwhile tells the errors of a path that is not any more what it was
// when the folder was looked at.
func changedMeanwhile(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO)
}

// paxAttribute begins the names of a tar's records of attributes.
const paxAttribute = "SCHILY.xattr."

// maxAttribute is the kernel's limit on an attribute's value, in bytes
// (XATTR_SIZE_MAX in linux/limits.h).
const maxAttribute = 64 << 10

// xattrs keeps the attributes that are the file's own: those of users, and file
// capabilities. Others (ACLs by the host's ids, labels of its security modules)
// mean nothing in the image.
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
