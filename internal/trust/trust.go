// Package trust stores which manifests a user has approved. A manifest decides what an
// agent can reach and which of the user's secrets it gets, and one in a cloned
// repository is someone else's text. As with direnv's .envrc files, an approval is for
// one path and one content: a new path or any change needs another approval.
//
// Approvals belong to the user, in $XDG_STATE_HOME/bottle/trust, and are read and
// written with that user's rights. Only commands use this package; a plan or a launch
// does not depend on an approval.
package trust

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

// Store is the store of a user's approvals.
type Store struct {
	caller caller.Caller
	dir    string // empty: the user has no directory for it
}

// Of returns the store of a user. Nothing is created before the first approval.
func Of(c caller.Caller) Store {
	state, _ := c.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // XDG Base Directory Specification: ignored
		if c.Home == "" {
			return Store{caller: c}
		}
		state = filepath.Join(c.Home, ".local", "state")
	}
	return Store{caller: c, dir: filepath.Join(state, "bottle", "trust")}
}

// Approval is the approval of one content of a manifest.
type Approval struct {
	Path   string    `json:"path"`
	SHA256 string    `json:"sha256"` // of the content, in hexadecimal
	Time   time.Time `json:"time"`
}

// record is the file of a path.
type record struct {
	Path string `json:"path"`
	// Approved are the approvals, the newest first: returning to a content that was
	// approved before, as when branches are switched, needs no other approval.
	Approved []Approval `json:"approved"`
	// Text is the content of the newest one, to report what a change changes.
	Text string `json:"text"`
}

// maxApprovals is the number of approved contents per path. The oldest ones are
// forgotten.
const maxApprovals = 20

// maxRecord bounds the size of a record: a manifest's and its JSON escapes, in bytes.
const maxRecord = 8 << 20

// State is what is known of a manifest's content.
type State struct {
	// Approval is that of this content, or of the newest one of the path; zero: the
	// path was never approved.
	Approval
	// Approved reports whether this content is approved.
	Approved bool
	// Text is the newest content that was approved.
	Text string
}

// Check looks up the content of a manifest at an absolute path.
func (s Store) Check(path, content string) (State, error) {
	r, err := s.read(path)
	if err != nil || len(r.Approved) == 0 {
		return State{}, err
	}
	hash := Sum(content)
	for _, a := range r.Approved {
		if a.SHA256 == hash {
			return State{Approval: a, Approved: true, Text: r.Text}, nil
		}
	}
	return State{Approval: r.Approved[0], Text: r.Text}, nil
}

// ErrNoDir means that there is no directory for a user's approvals.
var ErrNoDir = errors.New("neither HOME nor XDG_STATE_HOME is set")

// Approve stores an approval.
func (s Store) Approve(path, content string) error {
	r, err := s.read(path)
	if err == nil && s.dir == "" {
		err = ErrNoDir
	}
	if err != nil {
		return fmt.Errorf("store the approval: %w", err)
	}
	a := Approval{Path: path, SHA256: Sum(content), Time: time.Now().UTC().Truncate(time.Second)}
	older := slices.DeleteFunc(r.Approved, func(old Approval) bool { return old.SHA256 == a.SHA256 })
	r.Path, r.Text, r.Approved = path, content, append([]Approval{a}, older[:min(len(older), maxApprovals-1)]...)
	data, err := json.Marshal(r)
	if err == nil {
		err = s.caller.Do(func() error {
			return errors.Join(os.MkdirAll(s.dir, 0o700), atomicfile.Write(s.file(path), data, 0o600))
		})
	}
	if err != nil {
		return fmt.Errorf("store the approval: %w", err)
	}
	return nil
}

// Revoke removes all approvals of a path. It returns false if there was none.
func (s Store) Revoke(path string) (bool, error) {
	if s.dir == "" {
		return false, nil
	}
	err := s.caller.Do(func() error { return os.Remove(s.file(path)) })
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("revoke the approval: %w", err)
	}
	return true, nil
}

// List returns all approvals, sorted by path and then the newest first.
func (s Store) List() ([]Approval, error) {
	out := []Approval{}
	if s.dir == "" {
		return out, nil
	}
	var entries []os.DirEntry
	err := s.caller.Do(func() (err error) {
		entries, err = os.ReadDir(s.dir)
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list approvals: %w", err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" || strings.HasPrefix(e.Name(), ".") {
			continue // an unfinished file
		}
		r, err := s.readFile(filepath.Join(s.dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // revoked in the meantime
		}
		if err != nil {
			return nil, err
		}
		out = append(out, r.Approved...)
	}
	slices.SortStableFunc(out, func(a, b Approval) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// file returns the path of a manifest's record.
func (s Store) file(path string) string { return filepath.Join(s.dir, Sum(path)+".json") }

// read returns the record of a path, empty if there is none.
func (s Store) read(path string) (record, error) {
	if s.dir == "" {
		return record{}, nil
	}
	r, err := s.readFile(s.file(path))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err == nil && r.Path != path { // a file that was copied or made by hand
		return record{}, nil
	}
	return r, err
}

// readFile reads a record. A file that another user can have written is an error.
func (s Store) readFile(file string) (record, error) {
	data, err := s.caller.ReadPrivate(file, maxRecord)
	if err != nil {
		return record{}, hint.Wrap(err, "read approvals")
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, &hint.Error{Err: fmt.Errorf("read approvals: %s: %w", file, err), Hint: "remove the file, and approve the manifest again"}
	}
	return r, nil
}

// Sum returns the SHA-256 of a content in hexadecimal, as in Approval.
func Sum(text string) string {
	hash := sha256.Sum256([]byte(text))
	return hex.EncodeToString(hash[:])
}
