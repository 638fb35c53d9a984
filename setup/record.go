package setup

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/hint"
)

// Kinds of entries.
const (
	kindDirectory = "directory" // that setup has created; removed if it is empty
	kindFile      = "file"
	kindEdit      = "edit" // a file that existed before
	kindData      = "data" // a directory whose contents belong to setup's containerd
	kindPackage   = "package"
	kindUnit      = "unit"
)

// entry is one change that setup has made, or was about to make when it ended.
type entry struct {
	Kind string `json:"kind"`
	Name string `json:"name"` // a path without Config.Root, or the name of a package or unit
	// SHA256 are the digests of the contents that setup wrote. While a file is being
	// replaced there are two.
	SHA256 []string `json:"sha256,omitempty"`
	// Release is the digest of the release file that contained the file.
	Release string `json:"release,omitempty"`
	// Previous are the contents before an edit, or whether a unit was enabled.
	Previous *string `json:"previous,omitempty"`
}

// record lists the changes in the order in which they were made.
type record struct {
	Version int     `json:"version"`
	Entries []entry `json:"entries"`

	path string
}

func (c Config) readRecord() (*record, error) {
	r := &record{Version: 1, path: c.path(recordPath)}
	data, err := os.ReadFile(r.path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, r)
	}
	if err == nil && r.Version != 1 {
		err = fmt.Errorf("unknown version %d", r.Version)
	}
	if err != nil {
		return nil, &hint.Error{Err: fmt.Errorf("read the record of setup %s: %w", r.path, err), Hint: "use the version of bottle that has written it, or remove the files that it lists"}
	}
	return r, nil
}

func (r *record) index(kind, name string) int {
	return slices.IndexFunc(r.Entries, func(e entry) bool { return e.Kind == kind && e.Name == name })
}

// has reports whether setup has written a file, or a file in a directory.
func (r *record) has(name string) bool {
	return r.index(kindFile, name) >= 0 || strings.HasSuffix(name, "/") && len(r.below(name)) > 0
}

// below returns the files that setup has written in a directory, which ends with a slash.
func (r *record) below(dir string) []entry {
	var out []entry
	for _, e := range r.Entries {
		if e.Kind == kindFile && strings.HasPrefix(e.Name, dir) {
			out = append(out, e)
		}
	}
	return out
}

// add stores an entry before its change is made. For an entry of the same kind and name both
// contents are possible until wrote is called.
func (r *record) add(e entry) error {
	if i := r.index(e.Kind, e.Name); i >= 0 {
		old := &r.Entries[i]
		for _, digest := range e.SHA256 {
			if !slices.Contains(old.SHA256, digest) {
				old.SHA256 = append(old.SHA256, digest)
			}
		}
	} else {
		r.Entries = append(r.Entries, e)
	}
	return r.write()
}

// wrote stores that a file now has the contents of e and no others.
func (r *record) wrote(e entry) error {
	old := &r.Entries[r.index(e.Kind, e.Name)]
	old.SHA256, old.Release = e.SHA256, e.Release
	return r.write()
}

func (r *record) remove(kind, name string) error {
	if i := r.index(kind, name); i >= 0 {
		r.Entries = slices.Delete(r.Entries, i, i+1)
	}
	return r.write()
}

func (r *record) write() error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(r.path), 0o755); err != nil {
		return err
	}
	if err := atomicfile.Write(r.path, append(data, '\n'), 0o644); err != nil {
		return err
	}
	return syncDir(filepath.Dir(r.path))
}

// delete removes the record, which must be empty.
func (r *record) delete() error {
	if err := os.Remove(r.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	err := os.Remove(filepath.Dir(r.path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// digestOf returns the SHA-256 of a regular file; "" if there is no file.
func digestOf(path string) (string, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if !fi.Mode().IsRegular() {
		return "not a regular file", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return sum(h), errors.Join(err, f.Close())
}

// temporary is the name under which a file is written before it is complete. It is fixed, so
// that a crash leaves nothing that is not found again.
func temporary(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".bottle-setup")
}

// install writes a file atomically and durably.
func install(path string, in io.Reader, mode fs.FileMode) error {
	name := temporary(path)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, in)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(name, path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), os.Remove(name))
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
