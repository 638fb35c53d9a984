package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// piece is a layer entry, or part of the content of the preceding file entry.
type piece struct {
	header *tar.Header
	data   []byte
	zeros  int64 // instead of data: the length of a hole
}

// unpacker writes a layer's entries into a snapshot like containerd's pkg/archive
// does from the layer's tar, but with a third of the system calls. It relies on the
// packer's order: parents first, and each name once.
type unpacker struct {
	root *os.File // of the snapshot, or an overlay's upper directory
	// lower are the lower layers, topmost first, if root does not include them.
	lower []string

	dir   *os.File // parent directory of the last entry
	file  int      // descriptor of the regular file being written; 0: none
	head  *tar.Header
	at    int64         // offset in the file, in bytes
	hole  bool          // the last piece was a hole
	times []*tar.Header // directories whose times are set at the end
}

// take writes one piece.
func (u *unpacker) take(p piece) error {
	err := u.write(p)
	if err != nil {
		return fmt.Errorf("write %s into the snapshot: %w", u.head.Name, err)
	}
	return nil
}

func (u *unpacker) write(p piece) error {
	if p.header == nil {
		return u.content(p)
	}
	if err := u.finish(); err != nil {
		return err
	}
	u.head, u.at, u.hole = p.header, 0, false
	dir, base := path.Split(strings.TrimSuffix(p.header.Name, "/"))
	if err := u.enter(path.Clean(dir)); err != nil {
		return err
	}
	err := u.create(base)
	if errors.Is(err, unix.EEXIST) {
		// The base has an entry of that name and the snapshot includes it.
		if err = os.RemoveAll(below(u.dir, base)); err == nil {
			err = u.create(base)
		}
	}
	if err != nil || u.file != 0 {
		return err
	}
	return u.setMetadata(base)
}

// below returns the path of a name in an open directory.
func below(dir *os.File, base string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), base)
}

func (u *unpacker) enter(dir string) error {
	if u.dir != nil && u.dir.Name() == dir {
		return nil
	}
	next, err := openDirectory(u.root, dir)
	if err != nil {
		return err
	}
	if u.dir != nil {
		err = u.dir.Close()
	}
	u.dir = next
	return err
}

// create creates the entry. A regular file stays open.
func (u *unpacker) create(base string) error {
	fd := int(u.dir.Fd())
	switch u.head.Typeflag {
	case tar.TypeReg:
		file, err := unix.Openat(fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err == nil {
			u.file = file
		}
		return err
	case tar.TypeDir:
		err := unix.Mkdirat(fd, base, 0o700)
		var st unix.Stat_t
		if errors.Is(err, unix.EEXIST) && unix.Fstatat(fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		return err
	case tar.TypeSymlink:
		return unix.Symlinkat(u.head.Linkname, fd, base)
	case tar.TypeLink:
		return unix.Linkat(int(u.root.Fd()), u.head.Linkname, fd, base, 0)
	case tar.TypeFifo:
		return unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0)
	}
	return fmt.Errorf("unknown entry type %q", u.head.Typeflag)
}

func (u *unpacker) content(p piece) error {
	if u.hole = p.zeros > 0; u.hole {
		u.at += p.zeros
		return nil
	}
	for data := p.data; len(data) > 0; {
		n, err := unix.Pwrite(u.file, data, u.at)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		n = max(n, 0)
		u.at, data = u.at+int64(n), data[n:]
	}
	return nil
}

// setMetadata sets owner, mode, attributes and time of an entry that is not a
// regular file.
func (u *unpacker) setMetadata(base string) error {
	h, fd := u.head, int(u.dir.Fd())
	if h.Typeflag == tar.TypeLink {
		return nil
	}
	if err := unix.Fchownat(fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(fd, base, uint32(h.Mode), 0); err != nil {
			return err
		}
	}
	if h.Typeflag != tar.TypeDir {
		return unix.UtimesNanoAt(fd, base, modified(h), unix.AT_SYMLINK_NOFOLLOW)
	}
	u.times = append(u.times, h)
	if len(h.PAXRecords) == 0 {
		return nil
	}
	dir, err := openDirectory(u.dir, base)
	if err != nil {
		return err
	}
	return errors.Join(setAttributes(int(dir.Fd()), h), dir.Close())
}

// finish completes a regular file and sets its metadata. The owner is set before
// mode and capabilities because chown(2) clears them.
func (u *unpacker) finish() (err error) {
	if u.file == 0 {
		return nil
	}
	fd, h := u.file, u.head
	u.file = 0
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)); err != nil {
		return err
	}
	if err := setAttributes(fd, h); err != nil {
		return err
	}
	if u.hole {
		if err := unix.Ftruncate(fd, u.at); err != nil {
			return err
		}
	}
	times := modified(h)
	return unix.Futimes(fd, []unix.Timeval{unix.NsecToTimeval(times[0].Nano()), unix.NsecToTimeval(times[1].Nano())})
}

func modified(h *tar.Header) []unix.Timespec {
	t := unix.NsecToTimespec(h.ModTime.UnixNano())
	return []unix.Timespec{t, t}
}

func setAttributes(fd int, h *tar.Header) error {
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxAttribute)
		if !ok {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(value), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

// end sets the times of directories, which creating entries has changed.
func (u *unpacker) end() error {
	if err := u.finish(); err != nil {
		return err
	}
	for _, h := range u.times {
		if err := unix.UtimesNanoAt(int(u.root.Fd()), strings.TrimSuffix(h.Name, "/"), modified(h), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set the time of %s: %w", h.Name, err)
		}
	}
	return nil
}

func (u *unpacker) close() error {
	var err error
	if u.file != 0 {
		err = unix.Close(u.file)
	}
	if u.dir != nil {
		err = errors.Join(err, u.dir.Close())
	}
	return err
}

// makeParents creates a parent directory of the layer's root, and its parents, with
// the owner and mode they have in the base, or else root's.
func (u *unpacker) makeParents(dir string) error {
	if dir == "." || dir == "/" {
		return nil
	}
	if err := u.makeParents(path.Dir(dir)); err != nil {
		return err
	}
	fd := int(u.root.Fd())
	var st unix.Stat_t
	switch err := unix.Fstatat(fd, dir, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return nil
	case err == nil:
		if err := os.RemoveAll(below(u.root, dir)); err != nil {
			return err
		}
	}
	if err := unix.Mkdirat(fd, dir, 0o755); err != nil {
		return err
	}
	st = u.statLower(dir)
	if err := unix.Fchownat(fd, dir, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(fd, dir, st.Mode&0o7777, 0)
}

func (u *unpacker) statLower(dir string) unix.Stat_t {
	for _, l := range u.lower {
		var st unix.Stat_t
		if unix.Lstat(path.Join(l, dir), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return st
		}
	}
	return unix.Stat_t{Mode: 0o755}
}
