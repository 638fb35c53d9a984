package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/rootfile"
)

// File is written into the agent's root file system before its task starts.
type File = rootfile.File

func (r *RootFS) writeFile(root *os.Root, f File) error {
	name, err := resolveInRoot(root, f.Path, f.Mode.IsDir() || f.Existing)
	if err != nil {
		return err
	}
	if f.Existing {
		if _, err := root.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
	}
	uid, gid := int(r.User.UID), int(r.User.GID)
	if f.Root {
		uid, gid = 0, 0
	}
	if f.MountPoint {
		return makeMountPoints(root, f.Path)
	}
	if f.Mode.IsDir() {
		return mkdirAll(root, name, f.Mode.Perm(), uid, gid)
	}
	if err := mkdirAll(root, path.Dir(name), 0o755, uid, gid); err != nil {
		return err
	}
	if f.Link != "" {
		return writeLink(root, name, f.Link, uid, gid)
	}
	if f.Edit != nil {
		old, err := readExisting(root, name)
		if err != nil {
			return err
		}
		if f.Data, err = f.Edit(old); err != nil {
			return err
		}
	}
	// Writing would follow a symbolic link of the image, which may dangle.
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := root.WriteFile(name, f.Data, f.Mode); err != nil {
		return err
	}
	if err := root.Chown(name, uid, gid); err != nil {
		return err
	}
	return root.Chmod(name, f.Mode) // the umask may have cleared bits
}

// writeLink creates a symbolic link where the image has nothing: replacing a file of the
// image would lose it.
func writeLink(root *os.Root, name, target string, uid, gid int) error {
	err := root.Symlink(target, name)
	if errors.Is(err, fs.ErrExist) {
		return &hint.Error{
			Err:  errors.New("the image has such a file"),
			Hint: "remove the prompt from the manifest, or the file from the image",
		}
	}
	if err != nil {
		return err
	}
	return root.Lchown(name, uid, gid)
}

// maxEditSize bounds a file of the image that is edited, in bytes.
const maxEditSize = 16 << 20

// readExisting reads a file of the image and returns nil if there is none. It
// returns an error for anything but a regular file, such as a FIFO, because
// replacing it would lose it.
func readExisting(root *os.Root, name string) ([]byte, error) {
	f, err := openRegular(root, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxEditSize+1))
	if err == nil && len(data) > maxEditSize {
		err = fmt.Errorf("the image's file is too large (max %d bytes)", maxEditSize)
	}
	return data, err
}

// openRegular opens a file of an image that is mounted on the host. It checks the
// type first: opening a FIFO may block, and opening some host devices has side
// effects (watchdog, tape). Nothing runs in the image that could replace the file
// between the check and the open.
func openRegular(root *os.Root, name string) (*os.File, error) {
	name, err := resolveInRoot(root, name, true)
	if err != nil {
		return nil, err
	}
	fi, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("the image's file is not a regular file (%s)", fi.Mode().Type())
	}
	return root.Open(name)
}

// maxLinks is the number of symbolic links followed in one path, as in the kernel
// (path_resolution(7)).
const maxLinks = 40

// resolveInRoot resolves the symbolic links of a path as a process inside the
// image would: an absolute link starts at the image's root, and ".." does not
// lead above it. os.Root rejects such links; the returned name has none. The last
// element is resolved only if followLast is set. Missing elements are not an
// error.
func resolveInRoot(root *os.Root, name string, followLast bool) (string, error) {
	at, rest := ".", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		part := rest[0]
		rest = rest[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at) // "." for "."
			continue
		}
		next := path.Join(at, part)
		fi, err := root.Lstat(next)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err != nil || fi.Mode()&fs.ModeSymlink == 0 || len(rest) == 0 && !followLast {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("too many symbolic links in %s (max %d)", name, maxLinks)
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

// standardMountPoints are the mount points that every root file system needs.
var standardMountPoints = []string{"/proc", "/sys", "/dev"}

// makeMountPoints ensures that each path is a directory and replaces anything
// else: mounting on a symbolic link of the image would mount on its target.
// Links in parent directories are kept, within the root.
func makeMountPoints(root *os.Root, dirs ...string) error {
	for _, dir := range dirs {
		name := strings.TrimPrefix(path.Clean(dir), "/")
		fi, err := root.Lstat(name)
		if err == nil && !fi.IsDir() {
			err = root.Remove(name)
		}
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			err = root.MkdirAll(name, 0o755)
		}
		if err != nil {
			return fmt.Errorf("create mount point %s: %w", dir, err)
		}
	}
	return nil
}

// mkdirAll creates dir and its missing parents with the given owner; dir also gets
// the mode. An existing directory is not changed.
func mkdirAll(root *os.Root, dir string, mode fs.FileMode, uid, gid int) error {
	if dir == "" || dir == "." || dir == "/" {
		return nil
	}
	if _, err := root.Stat(dir); err == nil {
		return nil
	}
	if err := mkdirAll(root, path.Dir(dir), 0o755, uid, gid); err != nil {
		return err
	}
	if err := root.Mkdir(dir, mode.Perm()); err != nil {
		return err
	}
	if err := root.Chown(dir, uid, gid); err != nil {
		return err
	}
	return root.Chmod(dir, mode)
}
