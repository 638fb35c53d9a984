package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// File is put into the agent's root file system before its task starts, in
// place of one that the image has.
type File struct {
	Path string // absolute, inside
	// Mode with fs.ModeDir is a folder, which may be there already: then it
	// keeps its mode.
	Mode fs.FileMode
	// MountPoint: the folder is mounted on, so that nothing else of the image's,
	// such as a link to a folder, can take its place.
	MountPoint bool
	Data       []byte
	// Edit, if set, makes the data of what the image has there; nil: nothing.
	Edit func(old []byte) ([]byte, error)
	// Root makes root the owner, of parents that are missing too; otherwise it
	// is the agent's user.
	Root bool
}

func (r *RootFS) put(root *os.Root, f File) error {
	name, err := inside(root, f.Path, f.Mode.IsDir())
	if err != nil {
		return err
	}
	uid, gid := int(r.User.UID), int(r.User.GID)
	if f.Root {
		uid, gid = 0, 0
	}
	if f.MountPoint {
		return mountPoints(root, f.Path)
	}
	if f.Mode.IsDir() {
		return mkdir(root, name, f.Mode.Perm(), uid, gid)
	}
	if err := mkdir(root, path.Dir(name), 0o755, uid, gid); err != nil {
		return err
	}
	if f.Edit != nil {
		old, err := readOld(root, name)
		if err != nil {
			return err
		}
		if f.Data, err = f.Edit(old); err != nil {
			return err
		}
	}
	// A symbolic link of the image's would be followed, and may dangle.
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.WriteFile(name, f.Data, f.Mode); err != nil {
		return err
	}
	if err := root.Chown(name, uid, gid); err != nil {
		return err
	}
	return root.Chmod(name, f.Mode) // the umask may have taken bits away
}

// maxOld bounds an image's file that is edited, in bytes.
const maxOld = 16 << 20

// readOld reads what the image has, if it has it. A file that cannot be read as
// one, such as a FIFO, is an error: it would be lost.
func readOld(root *os.Root, name string) ([]byte, error) {
	f, err := openRegular(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxOld+1))
	if err == nil && len(data) > maxOld {
		err = fmt.Errorf("the image's is larger than %d bytes", maxOld)
	}
	return data, err
}

// openRegular opens a file of an image's, which is mounted on the host: it may be
// a FIFO there, which nobody writes to, or a device of the host's, and to open
// some of those is to use them (watchdog, tape). Nothing runs in it that could
// change it meanwhile.
func openRegular(root *os.Root, name string) (*os.File, error) {
	name, err := inside(root, name, true)
	if err != nil {
		return nil, err
	}
	fi, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("the image's is no regular file (%s)", fi.Mode().Type())
	}
	return root.Open(name)
}

// maxLinks is how many links are followed on one path, as in the kernel
// (path_resolution(7)).
const maxLinks = 40

// inside gives the name in an image's root of what a path leads to from inside: an
// absolute link begins at that root, and nothing is above it. os.Root would take
// such a link for a way out; it meets none any more in what is returned. The last
// part is followed if it is to be, and what is missing is no error.
func inside(root *os.Root, name string, last bool) (string, error) {
	at, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // of "." that is itself
			continue
		}
		next := path.Join(at, part)
		fi, err := root.Lstat(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err != nil || fi.Mode()&fs.ModeSymlink == 0 || len(rest) == 0 && !last {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("too many links of the image's on the way to %s", name)
		}
		to, err := root.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(to) {
			at = "."
		}
		rest = append(strings.Split(to, "/"), rest...)
	}
	return at, nil
}

// standardPoints are what every root file system has other file systems on.
var standardPoints = []string{"/proc", "/sys", "/dev"}

// mountPoints sees to it that there are folders to mount on, and nothing but
// folders: on a link of the image's it would be mounted on where that points to.
// Links above them stay, within the root.
func mountPoints(root *os.Root, folders ...string) error {
	for _, dir := range folders {
		name := strings.TrimPrefix(path.Clean(dir), "/")
		fi, err := root.Lstat(name)
		if err == nil && !fi.IsDir() {
			err = root.Remove(name)
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = root.MkdirAll(name, 0o755)
		}
		if err != nil {
			return fmt.Errorf("make a place to mount on at %s: %w", dir, err)
		}
	}
	return nil
}

// mkdir makes dir with the given owner and mode, and the missing folders above it.
// One that is there stays as it is.
func mkdir(root *os.Root, dir string, mode fs.FileMode, uid, gid int) error {
	if dir == "" || dir == "." || dir == "/" {
		return nil
	}
	if _, err := root.Stat(dir); err == nil {
		return nil
	}
	if err := mkdir(root, path.Dir(dir), 0o755, uid, gid); err != nil {
		return err
	}
	if err := root.Mkdir(dir, mode); err != nil {
		return err
	}
	if err := root.Chown(dir, uid, gid); err != nil {
		return err
	}
	return root.Chmod(dir, mode)
}
