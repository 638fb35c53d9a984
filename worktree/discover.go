package worktree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

// repository is a git repository of the user's that is copied.
type repository struct {
	Repo
	git     *git
	gitDir  string // of this worktree; absolute
	common  string // the repository's; absolute
	ignored map[string]bool
	index   []indexEntry
	// pointers are small blobs of the index that may be Git LFS pointers, by object.
	pointers map[string][]byte
}

// errNotRepository means that a directory is in no usable git repository.
var errNotRepository = errors.New("not in a git repository")

// ErrOwner means that git refuses a repository because it belongs to another user.
var ErrOwner = errors.New("the repository belongs to another user")

// discover finds the repository that contains dir. It runs git only where git itself
// accepts the owner (git-config(1), safe.directory).
func discover(ctx context.Context, g *git) (*repository, string, error) {
	top, err := g.line(ctx, "rev-parse", "--path-format=absolute", "--show-toplevel")
	if err != nil {
		return nil, "", discoverError(err)
	}
	r := &repository{Repo: Repo{Path: "."}, git: g.in(top)}
	for what, to := range map[string]*string{"--git-dir": &r.gitDir, "--git-common-dir": &r.common} {
		if *to, err = r.git.line(ctx, "rev-parse", "--path-format=absolute", what); err != nil {
			return nil, "", err
		}
	}
	if r.Head, err = r.git.line(ctx, "rev-parse", "--verify", "--quiet", "HEAD^{commit}"); err != nil {
		if exitCode(err) != 1 {
			return nil, "", err
		}
		r.Head = "" // no commit yet
	}
	branch, err := r.git.line(ctx, "symbolic-ref", "--quiet", "HEAD")
	if err != nil && exitCode(err) != 1 {
		return nil, "", err
	}
	r.Branch = strings.TrimPrefix(branch, "refs/heads/")
	r.Partial = r.value(ctx, "extensions.partialclone") != ""
	return r, top, nil
}

// BaseOf describes work that did not begin as a copy of the user's directory, but as a clone
// that others have made of the repository that contains dir, to target. Head is the commit at
// which they say that it began; it decides only on what is sent, and on what counts as new.
func BaseOf(ctx context.Context, c caller.Caller, dir, target, head string) (*Base, error) {
	user, err := newGit(c, dir)
	if err != nil {
		return nil, err
	}
	here, top, err := discover(ctx, user)
	if err != nil {
		return nil, err
	}
	if head == "-" || !isObject(head) {
		head = ""
	}
	return &Base{Top: top, Target: target, Repos: []Repo{{Path: ".", Head: head, Partial: here.Partial}}}, nil
}

func discoverError(err error) error {
	var failed *gitError
	if !errors.As(err, &failed) {
		return err
	}
	switch text := failed.stderr; {
	case strings.Contains(text, "dubious ownership"):
		return &hint.Error{Err: fmt.Errorf("%w: %w", ErrOwner, err), Hint: "run bottle as its owner, or accept it as that user: git config --global --add safe.directory DIRECTORY"}
	case strings.Contains(text, "not a git repository (or any"), strings.Contains(text, "must be run in a work tree"):
		return errNotRepository
	}
	return fmt.Errorf("%w: %w", errNotRepository, err)
}

// value returns a configuration value that applies to the repository, or an empty string.
func (r *repository) value(ctx context.Context, key string) string {
	v, err := r.git.line(ctx, "config", "--get", key)
	if err != nil {
		return ""
	}
	return v
}

// findIgnored reads which untracked files git ignores. A directory of which nothing is
// tracked is one name.
func (r *repository) findIgnored(ctx context.Context, below string) error {
	args := []string{"ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory"}
	if below != "" {
		args = append(args, "--", ":(literal)"+below)
	}
	out, err := r.git.output(ctx, args...)
	if err != nil {
		return fmt.Errorf("find ignored files: %w", err)
	}
	r.ignored = map[string]bool{}
	for name := range fields(out) {
		r.ignored[strings.TrimSuffix(name, "/")] = true
	}
	return nil
}

// fields iterates over strings that end with NUL.
func fields(out []byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for len(out) > 0 {
			field, rest, _ := bytes.Cut(out, []byte{0})
			if !yield(string(field)) {
				return
			}
			out = rest
		}
	}
}

// tracked reports whether anything in a directory is tracked. A directory in which
// nothing is, such as a project below a home directory that is a repository itself, is
// not a part of the repository.
func (r *repository) tracked(ctx context.Context, prefix string) (bool, error) {
	out, err := r.git.output(ctx, "ls-files", "-z", "--", ":(literal)"+prefix)
	return len(out) > 0, err
}
