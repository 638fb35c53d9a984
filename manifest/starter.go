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

// Starter is a commented example manifest.
//
//go:embed starter.yaml
var Starter []byte

// WriteStarter writes the starter manifest and returns its path. An empty path means
// bottle.yaml in the caller's directory, which must not contain a manifest of any name.
// Their ~/.config/bottle is created if it is missing, but no other directory. All of it is
// done with the caller's rights: under sudo the invoking user owns the file.
func WriteStarter(path string, c caller.Caller) (written string, err error) {
	if _, err := c.Stat(filepath.Dir(path)); err != nil && filepath.Dir(path) == filepath.Join(c.Home, homeManifests) {
		if err := c.MakeInHome(homeManifests); err != nil {
			return "", fmt.Errorf("create manifest: %w", err)
		}
	}
	err = c.Do(func() error {
		written, err = writeStarter(path, c.WorkDir)
		return err
	})
	return written, err
}

func writeStarter(path, workDir string) (_ string, err error) {
	if path == "" {
		for _, name := range manifestNames {
			if _, err := os.Lstat(filepath.Join(workDir, name)); err == nil {
				return "", exists(filepath.Join(workDir, name))
			}
		}
		path = filepath.Join(workDir, manifestNames[0])
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return "", exists(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return "", &hint.Error{Err: fmt.Errorf("create manifest: %w", err), Hint: "create the directory first: mkdir -p " + filepath.Dir(path)}
	}
	if err != nil {
		return "", fmt.Errorf("create manifest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(Starter); err != nil {
		return "", fmt.Errorf("create manifest: %w", err)
	}
	return path, nil
}

func exists(path string) error {
	return &hint.Error{
		Err:  fmt.Errorf("manifest already exists: %s", path),
		Hint: "edit it, or move it away",
	}
}
