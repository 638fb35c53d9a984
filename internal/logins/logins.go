// Package logins stores the keys and tokens with which a user's agents log in, one file
// for each kind of agent in ~/.config/bottle/logins. The files belong to the user, have
// mode 0600, and are read and written with that user's rights.
package logins

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
)

// dir is the directory of the logins, relative to the home.
const dir = ".config/bottle/logins"

// MaxValue bounds a stored value, in bytes: with its name it must fit into a variable
// (execve(2), MAX_ARG_STRLEN).
const MaxValue = 127 << 10

// Login is a stored variable.
type Login struct {
	Variable string
	Value    secret.Value
	Path     string
}

// Path returns the file of a kind; empty if the caller has no home.
func Path(c caller.Caller, kind string) string {
	if c.Home == "" {
		return ""
	}
	return filepath.Join(c.Home, dir, kind)
}

// Read returns the login of a kind; nil if none is stored.
func Read(c caller.Caller, kind string) (*Login, error) {
	path := Path(c, kind)
	if path == "" {
		return nil, nil
	}
	data, err := c.ReadPrivate(path, MaxValue+1<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, hint.Wrap(err, "read the stored login")
	}
	name, value, ok := strings.Cut(strings.TrimSuffix(string(data), "\n"), "=")
	if !ok || name == "" || value == "" {
		return nil, &hint.Error{
			Err:  fmt.Errorf("invalid stored login in %s: expected NAME=VALUE", path),
			Hint: "store it again: bottle login " + kind,
		}
	}
	return &Login{Variable: name, Value: secret.New(value), Path: path}, nil
}

// Write stores the login of a kind and replaces an earlier one. The value must be one
// line.
func Write(c caller.Caller, kind, variable string, value secret.Value) error {
	path := Path(c, kind)
	if path == "" {
		return errors.New("cannot store the login: your home directory is unknown")
	}
	data := []byte(variable + "=" + value.Reveal() + "\n")
	if err := c.MakeInHome(dir); err != nil {
		return fmt.Errorf("store the login: %w", err)
	}
	err := c.Do(func() error {
		return errors.Join(os.Chmod(filepath.Dir(path), 0o700), atomicfile.Write(path, data, 0o600))
	})
	if err != nil {
		return fmt.Errorf("store the login: %w", err)
	}
	return nil
}

// Remove removes the login of a kind. It reports whether there was one.
func Remove(c caller.Caller, kind string) (removed bool, err error) {
	path := Path(c, kind)
	if path == "" {
		return false, nil
	}
	err = c.Do(func() error { return os.Remove(path) })
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("remove the login: %w", err)
	}
	return true, nil
}

// Clean removes blanks and one line break around a value that was pasted or piped, and
// checks that it is one line.
func Clean(value []byte) (secret.Value, error) {
	value = bytes.TrimSpace(value)
	switch {
	case len(value) == 0:
		return secret.Value{}, errors.New("empty login")
	case len(value) > MaxValue:
		return secret.Value{}, fmt.Errorf("login too long: more than %d bytes", MaxValue)
	case bytes.ContainsAny(value, "\r\n\x00"):
		return secret.Value{}, &hint.Error{Err: errors.New("invalid login: more than one line"), Hint: "pass only the token or key"}
	}
	return secret.New(string(value)), nil
}
