package worktree

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/moby/patternmatcher"

	"github.com/bot-bottle/bottle/internal/asuser"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/filetree"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/ignorefile"
)

// Source is a directory that is copied into a bottle.
type Source struct {
	Dir    string // absolute
	Target string // the copy in the bottle; absolute
	Caller caller.Caller
	// Ignored includes untracked files that git ignores.
	Ignored bool
	// Notice receives a sentence about what is left out; it may be nil.
	Notice func(string)
	// Progress receives the number of bytes that were copied, and of those that are known
	// to be copied; it may be nil.
	Progress func(done, total int64)
}

// ErrUnreadable means that the user has no permission to read a part of the directory.
var ErrUnreadable = ignorefile.ErrUnreadable

// Pack writes an archive of the directory for filetree.Unpack, with Outward and Git set,
// and returns what it contains. In a git repository the archive contains a complete
// repository of its own, with all branches and tags, whatever the user's one borrows from
// other directories. Modified, staged and untracked files are included as they are; ignored
// files are not, unless the source says so. Of a subdirectory of a repository, the archive
// has a sparse checkout. What .dockerignore and .bottleignore list is left out.
//
// Everything is read with the user's rights. The error wraps ErrUnreadable, ErrOwner or
// ignorefile.ErrLink, or is the cause of the end of ctx.
func Pack(ctx context.Context, src Source, w io.Writer) (*Base, error) {
	if src.Notice == nil {
		src.Notice = func(string) {}
	}
	if src.Progress == nil {
		src.Progress = func(int64, int64) {}
	}
	p := &packer{
		ctx: ctx, src: src, tar: tar.NewWriter(w),
		base: &Base{Top: src.Dir, Target: src.Target, Time: time.Now(), Entries: map[string]filetree.Entry{}},
	}
	if err := p.pack(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return p.base, p.tar.Close()
}

// WorkDir returns the directory in the bottle that will correspond to the source's.
func WorkDir(ctx context.Context, src Source) (string, error) {
	src.Notice = func(string) {} // Copy reports it
	p := &packer{ctx: ctx, src: src, base: &Base{Top: src.Dir, Target: src.Target}}
	if err := p.findRepository(); err != nil {
		return "", err
	}
	return p.base.WorkDir(), nil
}

// NotIgnored returns the given files of a directory without those that Copy leaves out:
// git's own, and those that git ignores. If git cannot say, it returns all of them.
func NotIgnored(ctx context.Context, c caller.Caller, dir string, files []string) []string {
	g, err := newGit(c, dir)
	if err != nil {
		return files
	}
	files = slices.DeleteFunc(slices.Clone(files), func(name string) bool {
		return name == ".git" || strings.HasPrefix(name, ".git/") || strings.Contains(name, "/.git/")
	})
	if len(files) == 0 {
		return files
	}
	var asked []string
	for _, name := range files {
		asked = append(asked, "./"+name) // ":(glob)x" would be a pattern
	}
	var out bytes.Buffer
	if err := g.run(ctx, names(asked), &out, "check-ignore", "--stdin", "-z"); err != nil {
		return files // also if none is ignored
	}
	ignored := map[string]bool{}
	for name := range fields(out.Bytes()) {
		ignored[filepath.Clean(name)] = true
	}
	return slices.DeleteFunc(files, func(name string) bool { return ignored[name] })
}

// Copy packs the directory and unpacks it in the directory to, which is empty and not yet
// visible to an agent. UID and GID own the files; -1: the process does. After an error a
// part was copied.
func Copy(ctx context.Context, src Source, to string, uid, gid int) (*Base, error) {
	root, err := filetree.Open(to)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	r, w := io.Pipe()
	unpacked := make(chan error, 1)
	go func() {
		err := filetree.Unpack(root, bufio.NewReaderSize(r, 256<<10), filetree.Unpacking{UID: uid, GID: gid, Outward: true, Git: true})
		if err == nil {
			_, err = io.Copy(io.Discard, r) // what follows the archive's end
		}
		_ = r.CloseWithError(err)
		unpacked <- err
	}()
	out := bufio.NewWriterSize(w, 256<<10)
	base, err := Pack(ctx, src, out)
	if err == nil {
		err = out.Flush()
	}
	_ = w.CloseWithError(err) // nil: EOF
	uerr := <-unpacked
	if err == nil {
		err = uerr
	}
	if err != nil {
		return nil, hint.Wrap(err, "copy "+src.Dir)
	}
	return base, nil
}

// Describe returns the Base of a copy that something else makes of the directory: as it
// is, with its .git directory and everything else but what the ignore files list. Only a
// repository whose .git directory is in the directory itself is a usable one there.
func Describe(ctx context.Context, src Source) (*Base, error) {
	src.Ignored, src.Notice, src.Progress = true, func(string) {}, func(int64, int64) {}
	p := &packer{
		ctx: ctx, src: src, asIs: true, tar: tar.NewWriter(io.Discard),
		base: &Base{Top: src.Dir, Target: src.Target, Time: time.Now(), Entries: map[string]filetree.Entry{}},
	}
	if err := p.pack(); err != nil {
		return nil, fmt.Errorf("describe %s: %w", src.Dir, err)
	}
	return p.base, nil
}

type packer struct {
	asIs bool // for Describe
	ctx  context.Context
	src  Source
	tar  *tar.Writer
	base *Base

	git    *git           // nil: the host has none
	root   *filetree.Root // of base.Top
	ignore *patternmatcher.PatternMatcher
	repos  []*repository // the one of base.Top is first, if there is one
	files  []string      // relative to base.Top
	added  map[string]bool
	nested []string // directories with repositories that are still to be scanned
	denied []string
	done   int64
	total  int64
}

// count reports progress.
func (p *packer) count(n int64) {
	p.done += n
	p.src.Progress(p.done, max(p.total, p.done))
}

func (p *packer) pack() error {
	if err := p.findRepository(); err != nil {
		return err
	}
	if !utf8.ValidString(p.base.Top + p.base.Prefix) {
		return errNotText
	}
	if err := p.asUser(p.open); err != nil {
		return err
	}
	defer func() { _ = p.root.Close() }() // read only
	if err := p.scan(); err != nil {
		return err
	}
	if err := p.asUser(p.packFiles); err != nil {
		return err
	}
	for _, r := range p.repos {
		if p.asIs {
			p.base.Repos = append(p.base.Repos, r.Repo)
			continue
		}
		if err := p.packRepository(r); err != nil {
			return fmt.Errorf("copy git repository %s: %w", r.git.dir, err)
		}
	}
	return nil
}

func (p *packer) asUser(fn func() error) error { return asuser.Run(p.src.Caller.User(), fn) }

// findRepository finds the repository of the directory, if there is one.
func (p *packer) findRepository() (err error) {
	p.git, err = newGit(p.src.Caller, p.src.Dir)
	if errors.Is(err, ErrNoGit) {
		return nil
	}
	if err != nil {
		return err
	}
	if p.asIs && p.asUser(func() error { return checkGitDir(p.src.Dir) }) != nil {
		return nil //nolint:nilerr // not a repository of its own: it is copied as files
	}
	r, top, err := discover(p.ctx, p.git)
	if errors.Is(err, errNotRepository) || p.asIs && (errors.Is(err, ErrOwner) || top != p.src.Dir) {
		if failed, ok := errors.AsType[*gitError](err); ok {
			p.src.Notice("the directory is copied without its git repository: " + failed.Error())
		}
		return nil
	}
	if err != nil {
		return hint.Wrap(err, "examine the git repository of "+p.src.Dir)
	}
	// git resolves links; the directory may be named by one.
	var real string
	err = p.asUser(func() (err error) {
		real, err = filepath.EvalSymlinks(p.src.Dir)
		return err
	})
	if err != nil {
		return err
	}
	prefix, err := filepath.Rel(top, real)
	if err != nil || !filepath.IsLocal(prefix) {
		return fmt.Errorf("examine the git repository of %s: its top level is %s", p.src.Dir, top)
	}
	if prefix == "." {
		prefix = ""
	} else if tracked, err := r.tracked(p.ctx, prefix); err != nil || !tracked {
		return err // a directory that only happens to be below a repository
	}
	p.base.Top, p.base.Prefix, p.repos = top, prefix, []*repository{r}
	return nil
}

// checkGitDir reports an error unless dir has a .git directory of its own.
func checkGitDir(dir string) error {
	fi, err := os.Lstat(filepath.Join(dir, ".git"))
	if err == nil && !fi.IsDir() {
		err = errNotRepository
	}
	return err
}

// errNotText is returned for a path that a Base cannot store.
var errNotText = errors.New("its path is not valid UTF-8")

func (p *packer) open() (err error) {
	dir, err := os.Open(filepath.Join(p.base.Top, p.base.Prefix))
	if errors.Is(err, fs.ErrPermission) {
		return p.unreadable(p.src.Dir)
	}
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // read only
	if p.ignore, err = ignorefile.Read(dir); err != nil {
		return err
	}
	p.root, err = filetree.Open(p.base.Top)
	if errors.Is(err, fs.ErrPermission) {
		return p.unreadable(p.base.Top)
	}
	return err
}

func (p *packer) unreadable(names ...string) error {
	text := strings.Join(names, ", ")
	if more := len(names) - maxNames; more > 0 {
		text = fmt.Sprintf("%s and %d more", strings.Join(names[:maxNames], ", "), more)
	}
	return fmt.Errorf("%w: %s", ErrUnreadable, text)
}

// maxNames is the number of names in an error.
const maxNames = 5

// scan finds the files to copy: those of the directory, then those of each repository in
// it.
func (p *packer) scan() error {
	p.added = map[string]bool{".": true}
	if excluded, err := p.excluded(filepath.Join(p.base.Prefix, ".git")); err != nil {
		return err
	} else if excluded {
		p.repos, p.git = nil, nil
	}
	var r *repository
	if len(p.repos) > 0 {
		r = p.repos[0]
		if err := p.scanParents(r); err != nil {
			return err
		}
	}
	at := filepath.Join(".", p.base.Prefix)
	if err := p.scanRepository(at, r); err != nil {
		return err
	}
	for len(p.nested) > 0 {
		at, p.nested = p.nested[0], p.nested[1:]
		r, ok, err := p.enter(at)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := p.scanRepository(at, r); err != nil {
			return err
		}
	}
	if len(p.denied) > 0 {
		return p.unreadable(p.denied...)
	}
	slices.Sort(p.files) // parents before what is in them
	return nil
}

// scanParents adds the tracked files in the parent directories of the directory, as git's
// sparse checkout of a directory does (git-sparse-checkout(1)).
func (p *packer) scanParents(r *repository) error {
	if p.base.Prefix == "" {
		return nil
	}
	if err := r.readIndex(p.ctx); err != nil {
		return err
	}
	return p.asUser(func() error {
		for _, e := range r.index {
			dir := filepath.Dir(e.name)
			if e.mode == gitlink || dir != "." && !strings.HasPrefix(p.base.Prefix, dir+"/") {
				continue
			}
			if f, err := p.root.Lstat(e.name); err != nil || f.Kind != filetree.File && f.Kind != filetree.Link {
				continue // removed, or replaced
			}
			p.add(e.name)
		}
		return nil
	})
}

// gitlink is the mode of a submodule in git's index.
const gitlink = 0o160000

// enter examines the repository in a directory. ok is false if the directory is not
// copied, and r is nil if it is copied without its repository.
func (p *packer) enter(at string) (r *repository, ok bool, err error) {
	dir := filepath.Join(p.base.Top, at)
	r, top, err := discover(p.ctx, p.git.in(dir))
	switch {
	case errors.Is(err, errNotRepository), errors.Is(err, ErrOwner), err == nil && top != dir:
		p.src.Notice(at + " is copied without its git repository, which git cannot use")
		return nil, true, nil
	case err != nil:
		return nil, false, fmt.Errorf("examine the git repository %s: %w", at, err)
	case !utf8.ValidString(at):
		p.src.Notice(at + " is copied without its git repository: " + errNotText.Error())
		return nil, true, nil
	}
	for _, other := range p.repos {
		if other.common == r.common {
			p.src.Notice(at + " is not included: it is another worktree of the same repository")
			return nil, false, nil
		}
	}
	r.Path = at
	p.repos = append(p.repos, r)
	return r, true, nil
}

// scanRepository adds the files of a repository, or of a plain directory if r is nil.
func (p *packer) scanRepository(at string, r *repository) error {
	if r != nil && !p.src.Ignored {
		below := ""
		if r.Path == "." {
			below = p.base.Prefix
		}
		if err := r.findIgnored(p.ctx, below); err != nil {
			return err
		}
	}
	return p.asUser(func() error {
		return p.root.Walk(at, func(e filetree.Entry) error {
			if p.ctx.Err() != nil {
				return context.Cause(p.ctx)
			}
			return p.visit(e, at, r)
		})
	})
}

// visit adds one file. It returns filetree.ErrSkipDir for a directory that is not entered.
func (p *packer) visit(e filetree.Entry, at string, r *repository) error {
	if e.Name == at && e.Kind == filetree.Dir {
		p.add(at)
		return nil
	}
	if filepath.Base(e.Name) == ".git" && p.git != nil {
		return leave(e) // a new one is made
	}
	if r != nil && r.ignored[within(r.Path, e.Name)] {
		return leave(e)
	}
	excluded, err := p.excluded(e.Name)
	if err != nil {
		return err
	}
	if excluded {
		if e.Kind == filetree.Dir && ignorefile.MayInclude(p.ignore, within(p.base.Prefix, e.Name)) {
			return nil
		}
		return leave(e)
	}
	switch e.Kind {
	case filetree.Other:
		return p.omit(e)
	case filetree.Dir:
		if p.git == nil || p.asIs {
			break
		}
		inside, err := p.root.Lstat(filepath.Join(e.Name, ".git"))
		if err != nil {
			return err
		}
		if inside.Kind != filetree.Missing {
			p.nested = append(p.nested, e.Name)
			return filetree.ErrSkipDir
		}
	}
	p.add(e.Name)
	p.total += e.Size
	return nil
}

func leave(e filetree.Entry) error {
	if e.Kind == filetree.Dir {
		return filetree.ErrSkipDir
	}
	return nil
}

// omit reports a file that cannot be copied.
func (p *packer) omit(e filetree.Entry) error {
	now, err := p.root.Lstat(e.Name)
	if err != nil {
		return err
	}
	if now.Kind == filetree.Dir { // Walk could not open it
		p.denied = append(p.denied, e.Name)
		return nil
	}
	p.src.Notice(e.Name + " is not included: it is a socket, a device or a FIFO")
	return nil
}

// add adds a file and its parents.
func (p *packer) add(name string) {
	if p.added[name] {
		return
	}
	p.add(filepath.Dir(name))
	p.added[name] = true
	p.files = append(p.files, name)
}

// within returns a path relative to the directory dir, which contains it.
func within(dir, name string) string {
	if dir == "." || dir == "" {
		return name
	}
	return strings.TrimPrefix(name, dir+"/")
}

// excluded reports whether the ignore files exclude a file. They are relative to the
// directory that was asked for and apply to what is in it.
func (p *packer) excluded(name string) (bool, error) {
	if p.ignore == nil || p.base.Prefix != "" && !strings.HasPrefix(name, p.base.Prefix+"/") {
		return false, nil
	}
	return p.ignore.MatchesOrParentMatches(within(p.base.Prefix, name))
}

// packFiles writes the files and records them.
func (p *packer) packFiles() error {
	// git compares the content of files that were modified in the second of the index, or
	// later (racy git).
	latest := p.base.Time.Add(-2 * time.Second).UnixNano()
	for _, name := range p.files {
		if p.ctx.Err() != nil {
			return context.Cause(p.ctx)
		}
		h := sha256.New()
		e, ok, err := p.root.Add(p.tar, name, name, h, latest)
		if errors.Is(err, fs.ErrPermission) {
			p.denied = append(p.denied, name)
			continue
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", name, err)
		}
		if !ok {
			p.src.Notice(name + " is not included: it was removed or replaced during the copy")
			continue
		}
		if e.Kind == filetree.File {
			e.Sum = string(h.Sum(nil))
			p.count(e.Size)
		}
		p.base.Entries[name] = e
	}
	if len(p.denied) > 0 {
		return p.unreadable(p.denied...)
	}
	return nil
}
