package workspace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Begin marks a workspace as used again: its state is not known until End.
func (s *Store) Begin(ctx context.Context, name string) error {
	return s.Update(ctx, name, func(r *Record) { r.End, r.Ended, r.Summary = "", time.Time{}, nil })
}

// End records the state of a mounted workspace that no task uses any more, and unmounts
// it. A workspace that is not mounted is left as it is, except that an incomplete one is
// removed. End is idempotent, and several processes may call it concurrently.
func (s *Store) End(ctx context.Context, name, at string) error {
	mounted, err := Mounted(at)
	if err != nil {
		return err
	}
	r, err := s.Load(name)
	incomplete := errors.Is(err, ErrNotFound)
	if err != nil && !incomplete {
		return errors.Join(err, Unmount(ctx, at))
	}
	state := ""
	if mounted && !incomplete {
		// Without a fingerprint the workspace counts as changed, which loses nothing.
		state, err = quickFingerprint(ctx, at, r.Start, r.Fetched)
	} else {
		err = nil
	}
	// A sandbox over a kept workspace has a mount, too, but no workspace of its name.
	if mounted && incomplete && s.exists(name) {
		drop(at)
	}
	if uerr := Unmount(ctx, at); uerr != nil {
		return errors.Join(err, uerr)
	}
	switch {
	case incomplete:
		return s.Remove(name)
	case mounted:
		uerr := s.Update(ctx, name, func(r *Record) { r.End, r.Ended = state, time.Now() })
		if errors.Is(uerr, ErrNotFound) { // removed meanwhile
			uerr = nil
		}
		return errors.Join(err, uerr)
	}
	return err
}

// exists reports whether there is a workspace of a name, which may be incomplete.
func (s *Store) exists(name string) bool {
	_, err := os.Stat(filepath.Join(s.Dir(name), diskFile))
	return err == nil
}

// Abandon makes a workspace incomplete: it is removed when it is unmounted, and what was
// not yet written to disk is not written.
func (s *Store) Abandon(name string) error {
	err := os.Remove(filepath.Join(s.Dir(name), recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("abandon workspace %s: %w", name, err)
	}
	return nil
}

// State returns the record of a workspace with the state that its files have now, if it
// is mounted on at.
func (s *Store) State(ctx context.Context, r *Record, at string) (*Record, error) {
	now := *r
	mounted, err := Mounted(at)
	if err != nil || !mounted {
		return &now, err
	}
	now.End, err = quickFingerprint(ctx, at, r.Start, r.Fetched)
	return &now, err
}

// Fetching begins a fetch of a workspace's work, mounted on at, or not mounted if its
// bottle has ended. The returned function records that the work was fetched. What the
// agent changes meanwhile counts as not fetched.
func (s *Store) Fetching(ctx context.Context, name, at string) (fetched func() error, err error) {
	mounted, err := Mounted(at)
	if err != nil {
		return nil, err
	}
	if _, err := s.Load(name); err != nil {
		return nil, err
	}
	if mounted {
		state, err := Fingerprint(ctx, at)
		if err != nil {
			return nil, err
		}
		return func() error { return s.Update(ctx, name, func(r *Record) { r.Fetched = state }) }, nil
	}
	return func() error {
		return s.Update(ctx, name, func(r *Record) {
			if r.End == "" {
				r.End = unknownState()
			}
			r.Fetched = r.End
		})
	}, nil
}
