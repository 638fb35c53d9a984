package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
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
	name := strings.TrimPrefix(path.Clean(f.Path), "/")
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
	if err := mkdir(root, filepath.Dir(name), 0o755, uid, gid); err != nil {
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
	fi, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("the image's is no regular file (%s)", fi.Mode().Type())
	}
	return root.Open(name)
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
	if err := mkdir(root, filepath.Dir(dir), 0o755, uid, gid); err != nil {
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
