package worktree

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxAlternates bounds the chain of alternate object directories, as git does
// (object-file.c, link_alt_odb_entries).
const maxAlternates = 5

// packFiles are the endings of the files of a pack that are copied. Indexes of several
// packs and commit graphs are left out: git works without them, and those of several
// object directories do not fit together.
var packFiles = []string{".pack", ".idx", ".rev", ".promisor", ".mtimes"}

// object is a file of an object directory.
type object struct {
	name string // in the new object directory
	path string
}

// objects lists the files of an object directory and of its alternates. Loose objects
// come first: a concurrent `git repack` moves them into packs, so that each object is in
// what was listed before or in what is listed after. It must run with the user's rights.
func objects(dir string) ([]object, error) {
	var loose, packs []object
	seen := map[string]bool{}
	err := eachObjectDir(dir, 0, map[string]bool{}, func(dir string) error {
		l, err := looseObjects(dir)
		if err != nil {
			return err
		}
		p, err := packed(dir)
		if err != nil {
			return err
		}
		loose, packs = append(loose, l...), append(packs, p...)
		return nil
	})
	all := slices.DeleteFunc(append(loose, packs...), func(o object) bool {
		known := seen[o.name]
		seen[o.name] = true
		return known
	})
	return all, err
}

func eachObjectDir(dir string, depth int, seen map[string]bool, fn func(string) error) error {
	dir = filepath.Clean(dir)
	if seen[dir] {
		return nil
	}
	seen[dir] = true
	if depth > maxAlternates {
		return fmt.Errorf("too many alternate object directories: %s", dir)
	}
	if err := fn(dir); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, "info", "alternates"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		next := lines.Text()
		if next == "" || next[0] == '#' {
			continue
		}
		if !filepath.IsAbs(next) {
			next = filepath.Join(dir, next)
		}
		if err := eachObjectDir(next, depth+1, seen, fn); err != nil {
			return err
		}
	}
	return lines.Err()
}

func looseObjects(dir string) ([]object, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read object directory: %w", err)
	}
	var out []object
	for _, e := range entries {
		if len(e.Name()) != 2 || !isHex(e.Name()) {
			continue
		}
		files, err := os.ReadDir(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("read object directory: %w", err)
		}
		for _, f := range files {
			if n := len(f.Name()); (n == 38 || n == 62) && isHex(f.Name()) {
				out = append(out, object{e.Name() + "/" + f.Name(), filepath.Join(dir, e.Name(), f.Name())})
			}
		}
	}
	return out, nil
}

func packed(dir string) ([]object, error) {
	dir = filepath.Join(dir, "pack")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read packs: %w", err)
	}
	var out []object
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "pack-") && slices.Contains(packFiles, filepath.Ext(e.Name())) {
			out = append(out, object{"pack/" + e.Name(), filepath.Join(dir, e.Name())})
		}
	}
	return out, nil
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }
