package worktree

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/filetree"
	"github.com/bot-bottle/bottle/internal/hint"
)

// ErrConflict means that files of the user's have changed since they were copied, in
// another way than the bottle's.
var ErrConflict = errors.New("conflict")

// ErrRefused means that a bottle has changes that must not reach the user's files.
var ErrRefused = errors.New("refused")

// Apply changes the user's files as the agent has changed its copy, or with dryRun only
// checks that it can. If a file was changed on both sides, and differently, nothing is
// changed. A failure on the way is undone; so is, by the next call, what a killed process
// left half done. The returned changes are those that the user's files did not have yet.
func (w *Work) Apply(ctx context.Context, dryRun bool) ([]Change, error) {
	ctx, cancel := w.Limits.context(ctx)
	defer cancel()
	changes, err := w.Changes(ctx)
	if err != nil {
		return nil, err
	}
	if changes, err = w.admit(changes); err != nil {
		return nil, err
	}
	root, err := w.openTop()
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	if err := w.asUser(func() error { return recoverApply(root) }); err != nil {
		return nil, fmt.Errorf("undo an interrupted apply: %w", err)
	}
	if err := w.hashApplied(ctx, root, changes); err != nil {
		return nil, fmt.Errorf("compare the bottle's files: %w", err)
	}
	err = w.asUser(func() error {
		changes, err = missing(root, changes)
		return err
	})
	if err != nil || dryRun || len(changes) == 0 {
		return changes, err
	}
	a := &applying{root: root, changes: changes}
	err = w.asUser(a.begin)
	if err != nil {
		return nil, err
	}
	if err = a.fetch(ctx, w); err == nil {
		err = w.asUser(a.commit)
	}
	// On a thread of its own: also after ctx has ended.
	if rerr := w.asUser(a.remove); err == nil && rerr != nil {
		err = fmt.Errorf("remove temporary files: %w", rerr)
	}
	if err != nil {
		return nil, err
	}
	return changes, nil
}

func (w *Work) openTop() (root *filetree.Root, err error) {
	err = w.asUser(func() error {
		root, err = filetree.Open(w.Base.Top)
		return err
	})
	return root, err
}

// admit refuses changes that could do harm on the host, and leaves out what cannot be
// brought over.
func (w *Work) admit(changes []Change) ([]Change, error) {
	var problems hint.Problems
	var bytes int64
	out := slices.DeleteFunc(slices.Clone(changes), func(c Change) bool {
		if c.New.Kind == filetree.Other {
			w.notice(c.Name, unsupported)
			return true
		}
		return false
	})
	for _, c := range out {
		switch {
		case filetree.IsGit(c.Name):
			problems.Add(fmt.Errorf("%w: %s has the name of a git directory", ErrRefused, printable(c.Name)))
		case strings.HasPrefix(c.Name, stagePrefix):
			problems.Add(fmt.Errorf("%w: %s has the name of bottle's temporary files", ErrRefused, printable(c.Name)))
		case c.New.Kind == filetree.Link && filetree.LeadsOut(c.Name, c.New.Link):
			problems.Add(fmt.Errorf("%w: %s is a link that leads out: %s", ErrRefused, printable(c.Name), printable(c.New.Link)))
		case c.New.Kind == filetree.File:
			if bytes += c.New.Size; bytes < 0 || bytes > w.Limits.Bytes {
				return nil, fmt.Errorf("%w: the changed files have more than %d bytes, with %s", ErrTooLarge, w.Limits.Bytes, printable(c.Name))
			}
		}
	}
	return out, limitProblems(problems)
}

// maxProblems is the number of files that one error names.
const maxProblems = 20

func limitProblems(p hint.Problems) error {
	if more := len(p) - maxProblems; more > 0 {
		p = append(p[:maxProblems:maxProblems], fmt.Errorf("%w: and %d more files", errors.Unwrap(p[0]), more))
	}
	return p.Err()
}

// hashApplied hashes the bottle's files where the user's may have the same content: after
// an earlier apply, for example.
func (w *Work) hashApplied(ctx context.Context, root *filetree.Root, changes []Change) error {
	var list []string
	number := map[string]int{}
	err := w.asUser(func() error {
		for i, c := range changes {
			if c.New.Kind != filetree.File || c.New.Sum != "" {
				continue
			}
			now, err := root.Lstat(c.Name)
			if err != nil {
				return err
			}
			if now.Kind == filetree.File && now.Size == c.New.Size {
				list, number[c.Name] = append(list, c.Name), i
			}
		}
		return nil
	})
	if err != nil || len(list) == 0 {
		return err
	}
	return w.hashes(ctx, list, func(e filetree.Entry) { changes[number[e.Name]].New.Sum = e.Sum })
}

// missing returns the changes that the user's files do not have. It compares every file
// with what was copied in, and returns ErrConflict for those that are neither.
func missing(root *filetree.Root, changes []Change) ([]Change, error) {
	var todo []Change
	var conflicts hint.Problems
	for _, c := range changes {
		now, err := root.Describe(c.Name)
		if err != nil {
			return nil, err
		}
		switch {
		case equal(now, c.New) && c.New.Kind != filetree.File, c.New.Kind == filetree.File && c.New.Sum != "" && equal(now, c.New):
		case equal(now, c.Old), c.Old.Kind == filetree.Missing && now.Kind == filetree.Dir && c.New.Kind == filetree.Dir:
			c.Old.MTime = now.MTime
			todo = append(todo, c)
		default:
			conflicts.Add(&hint.Error{
				Err:  fmt.Errorf("%w: %s has changed here and in the bottle", ErrConflict, printable(c.Name)),
				Hint: "bring the work over as a branch with bottle fetch, or copy single files with bottle cp",
			})
		}
	}
	return todo, limitProblems(conflicts)
}

// stagePrefix begins the name of the directory, in the user's, with the files of an apply
// in progress. It contains new/N and old/N, and the journal.
const stagePrefix = ".bottle-apply-"

// applying is one apply. New files are complete in the stage before the first of the
// user's is touched; then every step is a rename or a removal that can be reversed.
type applying struct {
	root    *filetree.Root
	changes []Change
	stage   string
	journal journal
	staged  map[string]bool // names whose content is in the stage
	unlock  func() error
}

func (a *applying) begin() error {
	a.stage = stagePrefix + rand.Text()
	a.staged = map[string]bool{}
	for _, dir := range []string{a.stage, a.stage + "/new", a.stage + "/old"} {
		if err := a.root.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("create temporary directory: %w", err)
		}
	}
	var err error
	a.unlock, err = a.root.Lock(a.stage)
	return err
}

// fetch writes the new files to the stage.
func (a *applying) fetch(ctx context.Context, w *Work) error {
	number := map[string]int{}
	var want []string
	for i, c := range a.changes {
		if c.New.Kind == filetree.File {
			number[c.Name] = i
			want = append(want, c.Name)
		}
	}
	if len(want) > 0 {
		err := w.fetchFiles(ctx, want, w.Limits.Bytes, func(name string, e filetree.Entry, r io.Reader) error {
			i := number[name]
			if e.Kind != filetree.File {
				return fmt.Errorf("%s changes in the bottle: try again", printable(name))
			}
			mode := e.Mode &^ 0o022
			if old := a.changes[i].Old; old.Kind == filetree.File {
				mode = e.Mode &^ (0o022 &^ old.Mode)
			}
			a.staged[name] = true
			return a.root.Create(a.stage+"/new/"+strconv.Itoa(i), r, e.Size, mode)
		})
		if err != nil {
			return fmt.Errorf("read the bottle's files: %w", err)
		}
	}
	for _, name := range want {
		if !a.staged[name] {
			return fmt.Errorf("read the bottle's files: %s changes in the bottle: try again", printable(name))
		}
	}
	return nil
}

// commit makes the changes: first removals, the innermost first, then directories, then
// files and links. After an error everything is undone.
func (a *applying) commit() (err error) {
	if _, err := missingNow(a.root, a.changes); err != nil {
		return err
	}
	a.journal = plan(a.changes)
	if err := a.journal.save(a.root, a.stage); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	for i, s := range a.journal.Steps {
		if err := s.do(a.root, a.stage); err != nil {
			undo := journal{Steps: a.journal.Steps[:i+1]}
			if uerr := undo.undo(a.root, a.stage); uerr != nil {
				a.stage = "" // keeps the old files
				return errors.Join(fmt.Errorf("change %s: %w", printable(s.Name), err), fmt.Errorf("undo: %w", uerr))
			}
			return fmt.Errorf("change %s: %w", printable(s.Name), err)
		}
	}
	return nil
}

// missingNow verifies that the files are still those that were compared, by their times:
// reading the contents took a while.
func missingNow(root *filetree.Root, changes []Change) ([]Change, error) {
	for _, c := range changes {
		now, err := root.Lstat(c.Name)
		if err != nil {
			return nil, err
		}
		if c.Old.Kind == filetree.File && (now.Kind != c.Old.Kind || now.MTime != c.Old.MTime || now.Size != c.Old.Size) ||
			c.Old.Kind == filetree.Missing && c.New.Kind != filetree.Dir && now.Kind != filetree.Missing {
			return nil, fmt.Errorf("%w: %s has just been changed here", ErrConflict, printable(c.Name))
		}
	}
	return changes, nil
}

// plan returns the steps of all changes.
func plan(changes []Change) journal {
	var removals, dirs, files []step
	for i, c := range changes {
		gone := c.Old.Kind != filetree.Missing && c.New.Kind != c.Old.Kind
		switch {
		case gone && c.Old.Kind == filetree.Dir:
			removals = append(removals, step{stepRmdir, c.Name, i, "", c.New.Kind == filetree.Missing})
		case gone:
			removals = append(removals, step{stepRemove, c.Name, i, "", false})
		}
		switch c.New.Kind {
		case filetree.Dir:
			if c.Old.Kind != filetree.Dir {
				dirs = append(dirs, step{stepMkdir, c.Name, i, "", false})
			}
		case filetree.File:
			if !gone && c.Old.Kind == filetree.File {
				files = append(files, step{stepReplace, c.Name, i, "", false})
			} else {
				files = append(files, step{stepCreate, c.Name, i, "", false})
			}
		case filetree.Link:
			if !gone && c.Old.Kind == filetree.Link {
				files = append(files, step{stepRemove, c.Name, i, "", false})
			}
			files = append(files, step{stepLink, c.Name, i, c.New.Link, false})
		}
	}
	slices.Reverse(removals)
	return journal{Steps: append(append(removals, dirs...), files...)}
}

// remove removes the stage, the journal first: what it describes is complete or undone.
func (a *applying) remove() error {
	if a.stage == "" {
		return nil
	}
	err := a.root.RemoveAll(a.stage + journalFile)
	if err == nil {
		err = a.root.RemoveAll(a.stage)
	}
	return errors.Join(err, a.unlock())
}

// recoverApply undoes what killed processes left half done.
func recoverApply(root *filetree.Root) error {
	stages, err := root.Names(".", stagePrefix)
	if err != nil {
		return err
	}
	for _, stage := range stages {
		unlock, err := root.Lock(stage)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.New("another bottle apply is at work in this directory")
		}
		if err != nil {
			return err
		}
		j, err := loadJournal(root, stage)
		if err == nil {
			err = j.undo(root, stage)
		}
		if err == nil {
			err = root.RemoveAll(stage)
		}
		if err = errors.Join(err, unlock()); err != nil {
			return err
		}
	}
	return nil
}
