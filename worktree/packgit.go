package worktree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// packRepository writes a repository's .git directory.
func (p *packer) packRepository(r *repository) error {
	if err := r.readIndex(p.ctx); err != nil {
		return err
	}
	format, err := r.git.line(p.ctx, "rev-parse", "--show-object-format")
	if err != nil {
		return err
	}
	sparse := r.Path == "." && p.base.Prefix != ""
	if err := p.markIndex(r, sparse); err != nil {
		return err
	}
	index, err := encodeIndex(r.index, hasher(format))
	if err != nil {
		return err
	}
	config, err := r.repoConfig(p.ctx, sparse)
	if err != nil {
		return err
	}
	refs, links, err := r.refs(p.ctx)
	if err != nil {
		return err
	}
	head := "ref: refs/heads/" + r.Branch + "\n"
	if r.Branch == "" {
		head = r.Head + "\n"
	}
	files := map[string][]byte{"HEAD": []byte(head), "config": []byte(config), "packed-refs": refs}
	for name, target := range links {
		files[name] = []byte("ref: " + target + "\n")
	}
	if sparse {
		files["info/sparse-checkout"] = []byte(cone(p.base.Prefix))
	}
	p.base.Repos = append(p.base.Repos, r.Repo)
	return p.asUser(func() error {
		w := &gitWriter{packer: p, dir: filepath.Join(r.Path, ".git"), made: map[string]bool{}}
		if err := w.state(r, files); err != nil {
			return err
		}
		if err := w.objects(r); err != nil {
			return err
		}
		// Last, with the time of the end: git reads files again whose time is not before
		// the index's (racy git).
		return w.data("index", index)
	})
}

// markIndex marks what is not in the copy, and what is unchanged.
func (p *packer) markIndex(r *repository, sparse bool) error {
	changed, err := r.changed(p.ctx)
	if err != nil {
		return err
	}
	if err := r.readPointers(p.ctx, changed); err != nil {
		return err
	}
	return p.asUser(func() error {
		for i := range r.index {
			e := &r.index[i]
			name := filepath.Join(r.Path, e.name)
			file, copied := p.base.Entries[name]
			if copied && e.stage == 0 && (!changed[e.name] || p.pointsTo(r, *e, file)) {
				e.clean = &file
			}
			if copied || e.stage != 0 || e.mode == gitlink {
				continue
			}
			// Left out by a pattern, or outside a sparse checkout: git must not take it
			// for deleted.
			now, err := p.root.Lstat(name)
			if err != nil {
				return err
			}
			e.skip = e.skip || now.Kind != filetree.Missing || sparse && !inCone(e.name, p.base.Prefix)
		}
		return nil
	})
}

// pointsTo reports whether a file that git takes for changed is the content of the Git LFS
// pointer in the index.
func (p *packer) pointsTo(r *repository, e indexEntry, file filetree.Entry) bool {
	blob, ok := r.pointers[e.id]
	return ok && isPointerTo(blob, file)
}

func inCone(name, prefix string) bool {
	dir := filepath.Dir(name)
	return dir == "." || strings.HasPrefix(prefix+"/", dir+"/") || strings.HasPrefix(name, prefix+"/")
}

// cone returns the patterns of a sparse checkout of one directory (git-sparse-checkout(1),
// "Internals — cone mode").
func cone(dir string) string {
	out, path := "/*\n!/*/\n", "/"
	for part := range strings.SplitSeq(dir, "/") {
		if path != "/" {
			out += "!" + path + "*/\n"
		}
		path += strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(part)
		path += "/"
		out += path + "\n"
	}
	return out
}

// refs returns all references in the format of packed-refs, and the symbolic ones. Those
// that bottle itself made stay behind.
func (r *repository) refs(ctx context.Context) (packed []byte, links map[string]string, err error) {
	out, err := r.git.output(ctx, "for-each-ref", "--format=%(objectname) %(refname) %(symref)")
	if err != nil {
		return nil, nil, err
	}
	links = map[string]string{}
	var b bytes.Buffer
	for line := range strings.Lines(string(out)) {
		id, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		name, target, _ := strings.Cut(rest, " ")
		switch {
		case strings.HasPrefix(name, ownRefs):
		case target != "":
			links[name] = target
		default:
			fmt.Fprintf(&b, "%s %s\n", id, name)
		}
	}
	return b.Bytes(), links, nil
}

// gitWriter writes the files of a .git directory.
type gitWriter struct {
	*packer
	dir  string
	made map[string]bool
}

// state writes small files: the given ones, and those of the user's repository that
// describe its state.
func (w *gitWriter) state(r *repository, files map[string][]byte) error {
	for _, name := range []string{"refs/heads", "refs/tags", "objects/pack", "objects/info", "info"} {
		if err := w.mkdir(name); err != nil {
			return err
		}
	}
	for _, own := range []struct {
		dir   string
		names []string
	}{
		{r.common, []string{"shallow", "info/exclude", "info/attributes"}},
		{r.gitDir, []string{"info/sparse-checkout", "MERGE_HEAD", "MERGE_MSG", "MERGE_MODE", "CHERRY_PICK_HEAD", "REVERT_HEAD"}},
	} {
		for _, name := range own.names {
			data, err := os.ReadFile(filepath.Join(own.dir, name))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if _, set := files[name]; !set {
				files[name] = data
			}
		}
	}
	for name, data := range files {
		if err := w.data(name, data); err != nil {
			return err
		}
	}
	return nil
}

// objects writes all objects, and what Git LFS has stored.
func (w *gitWriter) objects(r *repository) error {
	seen := map[string]bool{}
	// A pack that has gone was replaced by another one, which the next list contains.
	for range 5 {
		list, err := objects(filepath.Join(r.common, "objects"))
		if err != nil {
			return err
		}
		complete := true
		for _, o := range list {
			if seen[o.name] {
				continue
			}
			err := w.file("objects/"+o.name, o.path, 0o444)
			if errors.Is(err, fs.ErrNotExist) {
				complete = false
				continue
			}
			if err != nil {
				return err
			}
			seen[o.name] = true
		}
		if complete {
			return w.lfs(filepath.Join(r.common, "lfs", "objects"))
		}
	}
	return errors.New("its objects change all the time: stop other git processes and try again")
}

// lfs writes the content that Git LFS has stored in the repository.
func (w *gitWriter) lfs(dir string) error {
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return w.file(filepath.Join("lfs/objects", rel), path, 0o444)
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (w *gitWriter) mkdir(name string) error {
	if w.made[name] {
		return nil
	}
	if name != "." {
		if err := w.mkdir(filepath.Dir(name)); err != nil {
			return err
		}
	}
	w.made[name] = true
	return w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: filepath.Join(w.dir, name) + "/", Mode: 0o755, ModTime: time.Now()})
}

func (w *gitWriter) data(name string, data []byte) error {
	return w.write(name, bytes.NewReader(data), int64(len(data)), 0o644)
}

func (w *gitWriter) write(name string, r io.Reader, size, mode int64) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	if err := w.mkdir(filepath.Dir(name)); err != nil {
		return err
	}
	if err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: filepath.Join(w.dir, name), Size: size, Mode: mode, ModTime: time.Now()}); err != nil {
		return err
	}
	n, err := io.CopyN(w.tar, r, size)
	if err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	w.count(n)
	return nil
}

func (w *gitWriter) file(name, path string, mode int64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	return w.write(name, f, fi.Size(), mode)
}

// ownRefs begins the references that bottle makes: of a bottle's work, and, in the user's
// repository, of what was fetched. In refs/bottle/ they would make names such as
// bottle/NAME ambiguous (gitrevisions(7)).
const ownRefs = "refs/bottle-state/"
