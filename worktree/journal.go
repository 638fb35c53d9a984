package worktree

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// Kinds of steps.
const (
	stepRemove  = "remove"  // move the file to old/N
	stepRmdir   = "rmdir"   // remove the empty directory
	stepMkdir   = "mkdir"   // create the directory
	stepCreate  = "create"  // move new/N here
	stepReplace = "replace" // move the file to old/N, and new/N here
	stepLink    = "link"    // create the symbolic link
)

// step changes one file of the user's. Each can be undone, whether it was done completely,
// in part or not at all.
type step struct {
	Kind   string `json:"kind"`
	Name   string `json:"-"`
	N      int    `json:"n"`
	Target string `json:"-"` // of a link
	// Optional removals leave a directory that is not empty: it has files of the user's.
	Optional bool `json:"optional,omitempty"`
}

func (s step) staged(stage, kind string) string { return stage + "/" + kind + "/" + strconv.Itoa(s.N) }

func (s step) do(root *filetree.Root, stage string) error {
	switch s.Kind {
	case stepRemove:
		return root.Rename(s.Name, s.staged(stage, "old"))
	case stepRmdir:
		err := root.Rmdir(s.Name)
		if s.Optional && errors.Is(err, unix.ENOTEMPTY) {
			return nil
		}
		return err
	case stepMkdir:
		return root.Mkdir(s.Name, 0o755)
	case stepCreate:
		return root.RenameNew(s.staged(stage, "new"), s.Name)
	case stepReplace:
		// A link keeps the file reachable under its name at every moment.
		if err := root.Keep(s.Name, s.staged(stage, "old")); err != nil {
			return err
		}
		return root.Rename(s.staged(stage, "new"), s.Name)
	case stepLink:
		return root.Symlink(s.Target, s.Name)
	}
	return fmt.Errorf("unknown step %q", s.Kind)
}

// undo reverses the step, as far as it was done.
func (s step) undo(root *filetree.Root, stage string) error {
	old, err := root.Lstat(s.staged(stage, "old"))
	if err != nil {
		return err
	}
	fresh, err := root.Lstat(s.staged(stage, "new"))
	if err != nil {
		return err
	}
	switch s.Kind {
	case stepRemove, stepReplace:
		if old.Kind != filetree.Missing {
			return root.Rename(s.staged(stage, "old"), s.Name)
		}
	case stepRmdir:
		if now, err := root.Lstat(s.Name); err != nil || now.Kind != filetree.Missing {
			return err
		}
		return root.Mkdir(s.Name, 0o755)
	case stepMkdir:
		err := root.Rmdir(s.Name)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	case stepCreate:
		if fresh.Kind == filetree.Missing {
			return root.Rename(s.Name, s.staged(stage, "new"))
		}
	case stepLink:
		if now, err := root.Lstat(s.Name); err != nil || now.Kind != filetree.Link || now.Link != s.Target {
			return err
		}
		return root.Unlink(s.Name)
	}
	return nil
}

// storedStep is a step in a file. JSON strings would lose what is not UTF-8.
type storedStep struct {
	step
	NameBytes   []byte `json:"name"`
	TargetBytes []byte `json:"target,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (j journal) MarshalJSON() ([]byte, error) {
	stored := []storedStep{}
	for _, s := range j.Steps {
		stored = append(stored, storedStep{s, []byte(s.Name), []byte(s.Target)})
	}
	return json.Marshal(stored)
}

// UnmarshalJSON implements json.Unmarshaler.
func (j *journal) UnmarshalJSON(data []byte) error {
	var stored []storedStep
	if err := json.Unmarshal(data, &stored); err != nil {
		return err
	}
	for _, s := range stored {
		s.Name, s.Target = string(s.NameBytes), string(s.TargetBytes)
		j.Steps = append(j.Steps, s.step)
	}
	return nil
}

// journal lists the steps of an apply. It is stored in the stage before the first one.
type journal struct {
	Steps []step
}

const journalFile = "/journal"

func (j journal) save(root *filetree.Root, stage string) error {
	data, err := json.Marshal(j)
	if err != nil {
		return err
	}
	// Renamed when it is complete: a part of a journal is none.
	if err := root.Create(stage+journalFile+".new", bytes.NewReader(data), int64(len(data)), 0o600); err != nil {
		return err
	}
	return root.Rename(stage+journalFile+".new", stage+journalFile)
}

// loadJournal reads the journal of a stage. It is empty if no step was begun.
func loadJournal(root *filetree.Root, stage string) (journal, error) {
	var j journal
	e, err := root.Lstat(stage + journalFile)
	if err != nil || e.Kind == filetree.Missing {
		return j, err
	}
	f, _, err := root.OpenFile(stage + journalFile)
	if err != nil {
		return j, err
	}
	defer func() { _ = f.Close() }() // read only
	data, err := io.ReadAll(f)
	if err != nil {
		return j, err
	}
	return j, json.Unmarshal(data, &j)
}

// undo reverses the steps, the last one first.
func (j journal) undo(root *filetree.Root, stage string) error {
	var errs []error
	for i := len(j.Steps) - 1; i >= 0; i-- {
		if err := j.Steps[i].undo(root, stage); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", printable(j.Steps[i].Name), err))
		}
	}
	return errors.Join(errs...)
}
