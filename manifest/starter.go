package manifest

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

// Starter is a manifest to begin with.
//
//go:embed starter.yaml
var Starter []byte

// ErrManifestExists is wrapped when there is a manifest already.
var ErrExists = errors.New("there is a manifest already")

// WriteStarter writes a manifest to begin with, and returns its path. An empty
// path is bottle.yaml in the caller's folder, which must have no manifest of
// any name. Under sudo the file is the invoking user's. Their ~/.config/bottle is
// made if it is missing, and no other folder.
func WriteStarter(path string, c caller.Caller) (_ string, err error) {
	if path == "" {
		for _, name := range manifestNames {
			if _, err := os.Lstat(filepath.Join(c.WorkDir, name)); err == nil {
				return "", exists(filepath.Join(c.WorkDir, name))
			}
		}
		path = filepath.Join(c.WorkDir, manifestNames[0])
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil && filepath.Dir(path) == filepath.Join(c.Home, homeManifests) {
		if err := c.MakeInHome(homeManifests); err != nil {
			return "", fmt.Errorf("write a manifest: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return "", exists(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return "", &hint.Error{Err: fmt.Errorf("write a manifest: %w", err), Hint: "make its folder first: mkdir -p " + filepath.Dir(path)}
	}
	if err != nil {
		return "", fmt.Errorf("write a manifest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(Starter); err != nil {
		return "", fmt.Errorf("write a manifest: %w", err)
	}
	if c.UID == os.Getuid() {
		return path, nil
	}
	if err := f.Chown(c.UID, c.GID); err != nil {
		return "", fmt.Errorf("give the manifest to you: %w", err)
	}
	return path, nil
}

func exists(path string) error {
	return &hint.Error{
		Err:  fmt.Errorf("%w: %s", ErrExists, path),
		Hint: "edit that one, or move it away",
	}
}
