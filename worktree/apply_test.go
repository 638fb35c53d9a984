package worktree

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// TestConflict: what was changed on both sides is refused, all together, and nothing else
// is applied either. Changes of the user's in other files stay.
func TestConflict(t *testing.T) {
	for name, c := range map[string]struct {
		user, agent func(f *fixture, dir string)
		conflict    string
	}{
		"both edited": {
			func(f *fixture, dir string) { f.write(dir, "edited.txt", "mine\n") },
			func(f *fixture, dir string) { f.write(dir, "edited.txt", "yours\n") }, "edited.txt",
		},
		"edited and deleted": {
			func(f *fixture, dir string) { f.write(dir, "edited.txt", "mine\n") },
			func(f *fixture, dir string) { f.must(os.Remove(filepath.Join(dir, "edited.txt"))) }, "edited.txt",
		},
		"deleted and edited": {
			func(f *fixture, dir string) { f.must(os.Remove(filepath.Join(dir, "edited.txt"))) },
			func(f *fixture, dir string) { f.write(dir, "edited.txt", "yours\n") }, "edited.txt",
		},
		"both added": {
			func(f *fixture, dir string) { f.write(dir, "added", "mine\n") },
			func(f *fixture, dir string) { f.write(dir, "added", "yours\n") }, "added",
		},
		"same size": {
			func(f *fixture, dir string) { f.write(dir, "added", "mine\n") },
			func(f *fixture, dir string) { f.write(dir, "added", "your\n") }, "added",
		},
		"a directory became a link": {
			func(f *fixture, dir string) {
				f.must(os.Rename(filepath.Join(dir, "dir"), filepath.Join(f.TempDir(), "dir")))
				f.must(os.Symlink(f.TempDir(), filepath.Join(dir, "dir")))
			},
			func(f *fixture, dir string) { f.write(dir, "dir/kept.txt", "yours\n") }, "kept.txt",
		},
		"ignored by git": { // not copied in, but there
			func(f *fixture, dir string) { f.write(dir, "x.o", "mine\n"); f.write(dir, ".gitignore", "") },
			func(f *fixture, dir string) { f.write(dir, ".gitignore", "x\n"); f.write(dir, "x.o", "yours\n") }, ".gitignore",
		},
		"same change": {
			func(f *fixture, dir string) { f.write(dir, "edited.txt", "ours\n") },
			func(f *fixture, dir string) { f.write(dir, "edited.txt", "ours\n") }, "",
		},
		"other files": {
			func(f *fixture, dir string) { f.write(dir, "edited.txt", "mine\n"); f.write(dir, "dir/mine", "mine\n") },
			func(f *fixture, dir string) { f.must(os.RemoveAll(filepath.Join(dir, "dir"))) }, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.commit(f.dir, content)
			b := f.copyIn(f.dir)
			f.write(f.target, "harmless.txt", "yours\n")
			c.agent(f, f.target)
			c.user(f, f.dir)
			before := tree(t, f.dir)
			_, err := f.work(b).Apply(context.Background(), false)
			if c.conflict == "" {
				f.must(err)
				contains(t, "the user's files", tree(t, f.dir), "harmless.txt")
				if strings.Contains(before, "mine") {
					contains(t, "the user's files", tree(t, f.dir), "mine\\n")
				}
				return
			}
			if !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), c.conflict) {
				t.Errorf("apply: %v", err)
			}
			same(t, "the user's files", tree(t, f.dir), before)
		})
	}
}

// TestInterruptedApply stops an apply after each of its steps, as kill -9 does, and after
// each moment within a step. The next one first restores the user's files.
func TestInterruptedApply(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	f.must(os.Symlink("binary", filepath.Join(f.dir, "link")))
	b := f.copyIn(f.dir)
	agent(f, f.target, false)
	f.must(os.RemoveAll(filepath.Join(f.target, "binary")))
	before := tree(t, f.dir)
	root, err := filetree.Open(f.dir)
	f.must(err)
	defer func() { f.must(root.Close()) }()
	w := f.work(b)
	changes, err := w.Changes(context.Background())
	f.must(err)
	steps := 1
	for n := 0; n <= steps; n++ {
		todo, err := missing(root, changes)
		f.must(err)
		a := &applying{root: root, changes: todo}
		f.must(a.begin())
		f.must(a.fetch(context.Background(), w))
		j := plan(todo)
		steps = len(j.Steps)
		f.must(j.save(root, a.stage))
		for _, s := range j.Steps[:n] {
			f.must(s.do(root, a.stage))
		}
		if n < steps && j.Steps[n].Kind == stepReplace { // the first half of the step
			f.must(root.Keep(j.Steps[n].Name, j.Steps[n].staged(a.stage, "old")))
		}
		if err := recoverApply(root); err == nil || !strings.Contains(err.Error(), "at work") {
			t.Fatalf("a locked stage: %v", err)
		}
		f.must(a.unlock())
		if n == steps && tree(t, f.dir, a.stage) != tree(t, f.target, "build") {
			t.Error("control: all steps do not make the change")
		}
		f.must(recoverApply(root))
		same(t, "the user's files", tree(t, f.dir), before)
	}
	if steps < 10 {
		t.Errorf("only %d steps", steps)
	}
	_, err = w.Apply(context.Background(), false)
	f.must(err)
	same(t, "the user's files", tree(t, f.dir), tree(t, f.target, "build"))
}

// TestFailedApply has the last step fail. Everything is undone.
func TestFailedApply(t *testing.T) {
	f := newFixture(t)
	f.write(f.dir, "a.txt", "a\n")
	f.write(f.dir, "sub/b.txt", "b\n")
	b := f.copyIn(f.dir)
	f.write(f.target, "a.txt", "changed\n")
	f.must(os.RemoveAll(filepath.Join(f.target, "sub")))
	f.write(f.target, "sub", "a file\n")
	f.write(f.dir, "sub/mine", "in the way\n")
	before := tree(t, f.dir)
	if _, err := f.work(b).Apply(context.Background(), false); err == nil {
		t.Error("no error")
	}
	same(t, "the user's files", tree(t, f.dir), before)
}

// TestDiff: the patch is one that git applies, with the result of Apply.
func TestDiff(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	b := f.copyIn(f.dir)
	agent(f, f.target, true)
	other := filepath.Join(filepath.Dir(f.dir), "other")
	f.git(filepath.Dir(f.dir), "clone", "--quiet", f.dir, other)
	var patch, stat bytes.Buffer
	_, err := f.work(b).Diff(context.Background(), &patch, false, false)
	f.must(err)
	_, err = f.work(b).Diff(context.Background(), &stat, true, false)
	f.must(err)
	contains(t, "stat", stat.String(), "uncommitted.txt", "file")
	file := filepath.Join(f.TempDir(), "patch")
	f.must(os.WriteFile(file, patch.Bytes(), 0o644))
	f.git(other, "apply", "--binary", file)
	_, err = f.work(b).Apply(context.Background(), false)
	f.must(err)
	same(t, "patched files", tree(t, other), tree(t, f.dir))
}

// TestBranches: a branch with commits of the user's is not moved, nor one that is checked
// out; each bottle has its own.
func TestBranches(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	b := f.copyIn(f.dir)
	w := f.work(b)
	work := func(text string) { f.write(f.target, "work.txt", text) }
	fetch := func(name, branch string) (Fetched, error) {
		t.Helper()
		got, err := w.Fetch(context.Background(), name, branch)
		if err != nil {
			return Fetched{}, err
		}
		return got[0], nil
	}
	work("one\n")
	first, err := fetch("one", "bottle/one")
	f.must(err)
	work("two\n") // replaces the commit of the uncommitted work
	second, err := fetch("one", "bottle/one")
	f.must(err)
	if first.Tip == second.Tip || f.git(f.dir, "rev-parse", "bottle/one") != second.Tip || !second.New {
		t.Errorf("first %+v, then %+v", first, second)
	}
	if third, err := fetch("one", "bottle/one"); err != nil || third.New || third.Tip == "" {
		t.Errorf("without changes: %+v, %v", third, err)
	}
	other, err := fetch("two", "bottle/two")
	f.must(err)
	same(t, "branches", f.git(f.dir, "for-each-ref", "--format=%(refname:short)", "refs/heads"), "bottle/one\nbottle/two\nmain")
	if other.Commits != 0 || !other.Uncommitted {
		t.Errorf("other bottle: %+v", other)
	}
	mine := f.git(f.dir, "commit-tree", "-p", "bottle/one", "-m", "mine", "bottle/one^{tree}")
	f.git(f.dir, "update-ref", "refs/heads/bottle/one", mine)
	work("three\n")
	for range 2 {
		if _, err := fetch("one", "bottle/one"); err == nil || !strings.Contains(err.Error(), "has commits that are not in the bottle") {
			t.Errorf("a branch with other commits: %v", err)
		}
	}
	same(t, "the branch", f.git(f.dir, "rev-parse", "bottle/one"), mine)
	f.git(f.dir, "branch", "--quiet", "-f", "bottle/one", second.Tip)
	if _, err := fetch("one", "bottle/one"); err != nil {
		t.Errorf("a branch as it was fetched: %v", err)
	}
	if _, err := fetch("one", "main"); err == nil || !strings.Contains(err.Error(), "checked out") {
		t.Errorf("a branch that is checked out: %v", err)
	}
	for _, bad := range []string{"", "a b", "../x", "-x", "x.lock", "a..b"} {
		if _, err := fetch("one", bad); err == nil {
			t.Errorf("branch %q: no error", bad)
		}
	}
	if status := f.git(f.dir, "status", "--porcelain"); status != "" {
		t.Errorf("the user's files have changed: %s", status)
	}
}

// TestInterruptedFetch: a fetch removes the temporary repositories that killed ones have
// left, but not those of fetches in progress.
func TestInterruptedFetch(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	b := f.copyIn(f.dir)
	agent(f, f.target, true)
	used, remove, err := f.work(b).quarantineDir(filepath.Join(f.dir, ".git"))
	f.must(err)
	left := filepath.Join(f.dir, ".git", quarantinePrefix+"X")
	f.write(left, "objects/pack/x", "x")
	_, err = f.work(b).Fetch(context.Background(), "impl", "bottle/impl")
	f.must(err)
	if found, _ := filepath.Glob(filepath.Join(f.dir, ".git/bottle-*")); len(found) != 1 || found[0] != used {
		t.Errorf("%v, want %s only", found, used)
	}
	f.must(remove())
	if found, _ := filepath.Glob(filepath.Join(f.dir, ".git/bottle-*")); len(found) > 0 {
		t.Errorf("left behind: %v", found)
	}
}

// TestFetchWithoutGit: neither a plain directory nor an image without git can be fetched
// from, and both errors say what to do.
func TestFetchWithoutGit(t *testing.T) {
	f := newFixture(t)
	b := f.copyIn(f.dir)
	if _, err := f.work(b).Fetch(context.Background(), "x", "bottle/x"); !errors.Is(err, ErrNotGit) {
		t.Errorf("plain directory: %v", err)
	}
	f.commit(f.dir, content)
	f.must(os.RemoveAll(f.target))
	f.must(os.Mkdir(f.target, 0o755))
	w := f.work(f.copyIn(f.dir))
	for _, code := range []int{3, 127} {
		w.Inside = liar{"sh": func(io.Writer) int { return code }}
		if _, err := w.Fetch(context.Background(), "x", "bottle/x"); err == nil || !strings.Contains(err.Error(), "no git") {
			t.Errorf("image without git: %v", err)
		}
	}
}

// TestCopy: placement is that of docker cp, in both directions.
func TestCopy(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"file", "new", "new"},
		{"file", "there", "there/file"},
		{"file", "there/", "there/file"},
		{"file", "existing", "existing"},
		{"file", "none/", ""},
		{"file", "none/x", ""},
		{"dir", "new", "new/a"},
		{"dir", "there", "there/dir/a"},
		{"dir/", "there", "there/dir/a"},
		{"dir/.", "there", "there/a"},
		{"dir/.", "new", "new/a"},
		{"dir", "existing", ""},
		{"none", "there", ""},
		{"link", "new", "new"},
	} {
		for _, way := range []string{"out", "in"} {
			t.Run(way+" "+c.from+" to "+c.to, func(t *testing.T) {
				f := newFixture(t)
				from, to := f.target, f.dir
				if way == "in" {
					from, to = to, from
				}
				f.write(from, "file", "text\n")
				f.write(from, "dir/a", "text\n")
				f.must(os.Symlink("file", filepath.Join(from, "link")))
				f.write(to, "existing", "before\n")
				f.write(to, "file", "text\n")
				f.must(os.Mkdir(filepath.Join(to, "there"), 0o755))
				before := tree(t, to)
				w := f.work(&Base{Target: f.target})
				run := w.CopyOut
				if way == "in" {
					run = w.CopyIn
				}
				err := run(context.Background(), from+"/"+c.from, to+"/"+c.to)
				if c.want == "" {
					if err == nil {
						t.Error("no error")
					}
					same(t, "files", tree(t, to), before)
					return
				}
				f.must(err)
				data, err := os.ReadFile(filepath.Join(to, c.want))
				f.must(err)
				same(t, c.want, string(data), "text\n")
			})
		}
	}
}
