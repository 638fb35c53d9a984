package session

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// GuestDir returns the directory of a bottle's directory that is mounted at
// provision.GuestDir.
func GuestDir(bottleDir string) string { return filepath.Join(bottleDir, hosttask.GuestDir) }

// Mounts mount the guest directory of a bottle's directory and the guest program.
func Mounts(bottleDir, program string) []runtime.Mount {
	return []runtime.Mount{
		{Source: GuestDir(bottleDir), Target: provision.GuestDir},
		{Source: program, Target: provision.GuestInit},
	}
}

// CreateGuestDir creates the guest directory in a bottle's directory.
func CreateGuestDir(bottleDir string, files []provision.GuestFile, owner runtime.User) error {
	dir := GuestDir(bottleDir)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("create guest directory: %w", err)
	}
	for _, f := range files {
		if err := writeFile(filepath.Join(dir, f.Name), f, int(owner.UID), int(owner.GID)); err != nil {
			return fmt.Errorf("create guest directory: %w", err)
		}
	}
	return nil
}

// GiveFiles writes files to the guest directory of a bottle that was launched ahead of its
// use. Each replaces the one of its name in one step. What is mounted on stays.
func GiveFiles(bottleDir string, files []provision.GuestFile, owner runtime.User) error {
	dir := GuestDir(bottleDir)
	for _, f := range files {
		name := filepath.Join(dir, f.Name)
		_, err := os.Lstat(name)
		if err == nil && (f.Mode.IsDir() || name == filepath.Join(dir, filepath.Base(provision.GuestInit))) {
			continue
		}
		if f.Mode.IsDir() {
			err = writeFile(name, f, int(owner.UID), int(owner.GID))
		} else {
			next := filepath.Join(dir, "."+rand.Text())
			if err = writeFile(next, f, int(owner.UID), int(owner.GID)); err == nil {
				err = os.Rename(next, name)
			}
		}
		if err != nil {
			return fmt.Errorf("write guest files: %w", err)
		}
	}
	return nil
}

// Image returns the properties of an image that provisioning depends on.
func Image(r *runtime.RootFS) provision.Image {
	return provision.Image{
		Home: r.Home(), UserHome: r.User.Home, WorkDir: r.WorkDir(), Env: r.Config().Env, UID: r.User.UID,
	}
}

// writeFile creates a file or directory. A private file gets its owner before it
// gets its content.
func writeFile(name string, f provision.GuestFile, uid, gid int) (err error) {
	if f.Mode.IsDir() {
		return os.Mkdir(name, f.Mode.Perm())
	}
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if f.Private {
		if err := out.Chown(uid, gid); err != nil {
			return err
		}
	}
	_, err = out.Write(f.Data)
	return err
}
