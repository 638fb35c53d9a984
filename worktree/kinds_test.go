package worktree

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// kinds are the kinds of directories that people work in. Each creates the directory and
// returns it.
var kinds = []struct {
	name string
	make func(f *fixture) string
	// sub is the directory that is copied, relative to the created one.
	sub string
}{
	{"plain", func(f *fixture) string {
		f.write(f.dir, "a.txt", "a\n")
		f.write(f.dir, "sub/b.txt", "b\n")
		return f.dir
	}, ""},
	{"repository", func(f *fixture) string {
		dir := filepath.Join(f.dir, "repo")
		f.commit(dir, content)
		return dir
	}, ""},
	{"linked worktree", func(f *fixture) string {
		f.commit(filepath.Join(f.dir, "main"), content)
		f.git(filepath.Join(f.dir, "main"), "worktree", "add", "--quiet", "-b", "topic", "../linked")
		return filepath.Join(f.dir, "linked")
	}, ""},
	{"nested worktree", func(f *fixture) string {
		f.commit(filepath.Join(f.dir, "main"), content)
		f.git(filepath.Join(f.dir, "main"), "worktree", "add", "--quiet", "-b", "x", ".claude/worktrees/x")
		return filepath.Join(f.dir, "main/.claude/worktrees/x")
	}, ""},
	{"repository with a nested worktree", func(f *fixture) string {
		dir := filepath.Join(f.dir, "main")
		f.commit(dir, content)
		f.git(dir, "worktree", "add", "--quiet", "-b", "x", ".claude/worktrees/x")
		return dir
	}, ""},
	{"shared clone", func(f *fixture) string {
		f.commit(filepath.Join(f.dir, "origin"), content)
		f.git(filepath.Join(f.dir, "origin"), "gc", "--quiet")
		f.git(f.dir, "clone", "--quiet", "--shared", "origin", "shared")
		f.git(filepath.Join(f.dir, "shared"), "commit", "--quiet", "--allow-empty", "-m", "third")
		return filepath.Join(f.dir, "shared")
	}, ""},
	{"subdirectory", func(f *fixture) string {
		dir := filepath.Join(f.dir, "mono")
		files := map[string]string{"README": "root\n", "libs/other/x.txt": "other\n", "apps/README": "apps\n", "apps/one/z/deep.txt": "deep\n", "apps/two/y": "two\n"}
		for name, text := range content {
			files["apps/one/"+name] = text
		}
		f.commit(dir, files)
		return dir
	}, "apps/one"},
	{"submodules", func(f *fixture) string {
		f.commit(filepath.Join(f.dir, "lib"), map[string]string{"lib.txt": "lib\n"})
		f.commit(filepath.Join(f.dir, "deep"), map[string]string{"deep.txt": "deep\n"})
		f.git(filepath.Join(f.dir, "lib"), "submodule", "--quiet", "add", filepath.Join(f.dir, "deep"), "in/deep")
		f.git(filepath.Join(f.dir, "lib"), "commit", "--quiet", "-m", "submodule")
		dir := filepath.Join(f.dir, "super")
		f.commit(dir, content)
		f.git(dir, "submodule", "--quiet", "add", filepath.Join(f.dir, "lib"), "vendor/lib")
		f.git(dir, "submodule", "--quiet", "update", "--init", "--recursive")
		f.git(dir, "commit", "--quiet", "-m", "submodule")
		return dir
	}, ""},
	{"shallow clone", func(f *fixture) string {
		f.commit(filepath.Join(f.dir, "origin"), content)
		f.git(f.dir, "clone", "--quiet", "--depth=1", "file://"+filepath.Join(f.dir, "origin"), "shallow")
		return filepath.Join(f.dir, "shallow")
	}, ""},
	{"partial clone", func(f *fixture) string {
		origin := filepath.Join(f.dir, "origin")
		f.commit(origin, map[string]string{"old.txt": "an old version\n", "keep.txt": "keep\n"})
		for name, text := range content {
			f.write(origin, name, text)
		}
		f.write(origin, "old.txt", "a new version\n")
		f.git(origin, "add", "-A")
		f.git(origin, "commit", "--quiet", "-m", "third")
		f.git(origin, "config", "uploadpack.allowFilter", "true")
		f.git(f.dir, "clone", "--quiet", "--filter=blob:none", "file://"+origin, "partial")
		return filepath.Join(f.dir, "partial")
	}, ""},
	{"git LFS", func(f *fixture) string {
		// What git-lfs stores, without the program: the pointer is committed, the content
		// is in the work tree and below .git/lfs.
		dir := filepath.Join(f.dir, "lfs")
		big := strings.Repeat("large content\n", 20)
		sum := fmt.Sprintf("%x", sha256.Sum256([]byte(big)))
		f.commit(dir, content)
		f.write(dir, "big.bin", fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", sum, len(big)))
		f.git(dir, "add", "-A")
		f.git(dir, "commit", "--quiet", "-m", "pointer")
		f.write(dir, "big.bin", big)
		f.write(dir, ".git/lfs/objects/"+sum[:2]+"/"+sum[2:4]+"/"+sum, big)
		return dir
	}, ""},
	{".git is a link", func(f *fixture) string {
		f.commit(filepath.Join(f.dir, "work"), content)
		// As the repo tool has it: objects are elsewhere again.
		f.must(os.MkdirAll(filepath.Join(f.dir, ".repo"), 0o755))
		f.must(os.Rename(filepath.Join(f.dir, "work/.git"), filepath.Join(f.dir, ".repo/work.git")))
		f.must(os.Rename(filepath.Join(f.dir, ".repo/work.git/objects"), filepath.Join(f.dir, ".repo/objects")))
		f.must(os.Symlink("../objects", filepath.Join(f.dir, ".repo/work.git/objects")))
		f.must(os.Symlink("../.repo/work.git", filepath.Join(f.dir, "work/.git")))
		return filepath.Join(f.dir, "work")
	}, ""},
	{"sha256", func(f *fixture) string {
		dir := filepath.Join(f.dir, "repo")
		f.must(os.MkdirAll(dir, 0o755))
		f.git(dir, "init", "--quiet", "--object-format=sha256")
		f.commit(dir, content)
		return dir
	}, ""},
	{"no commit yet", func(f *fixture) string {
		dir := filepath.Join(f.dir, "repo")
		f.must(os.MkdirAll(dir, 0o755))
		f.git(dir, "init", "--quiet")
		f.write(dir, ".gitignore", content[".gitignore"])
		return dir
	}, ""},
}

// content are files that every repository has.
var content = map[string]string{
	"edited.txt": "one\ntwo\nthree\n", "deleted.txt": "gone\n", "dir/kept.txt": "kept\n", ".gitignore": "*.o\nbuild/\n",
	"modified.txt": "before\n", "staged.txt": "before\n", "removed.txt": "x\n", "binary": "\x00\x01\xff\xfe\n", "na\nme\x1b[31m": "strange\n",
}

// dirty changes the user's files as people do before they start an agent: some changes
// are staged, some are not, some files are new.
func dirty(f *fixture, dir string) {
	f.write(dir, "untracked.txt", "new\n")
	f.must(os.MkdirAll(filepath.Join(dir, "empty"), 0o755))
	f.must(os.Symlink("untracked.txt", filepath.Join(dir, "link")))
	f.must(os.WriteFile(filepath.Join(dir, "run.sh"), []byte("#!/bin/sh\n"), 0o755))
	f.write(dir, "ignored.o", "object\n")
	f.write(dir, "build/out", "out\n")
	if _, err := os.Stat(filepath.Join(dir, "modified.txt")); err != nil {
		return
	}
	f.write(dir, "modified.txt", "after\n")
	f.write(dir, "staged.txt", "after\n")
	f.git(dir, "add", "staged.txt")
	f.must(os.Remove(filepath.Join(dir, "removed.txt")))
}

// agent works in the copy: it commits, edits, adds and deletes.
func agent(f *fixture, dir string, isGit bool) {
	f.write(dir, "committed.txt", "by the agent\n")
	f.write(dir, "bin/\x01odd \"name\"\n", "odd\n")
	if isGit {
		f.git(dir, "add", "committed.txt", "bin")
		f.git(dir, "-c", "user.name=agent", "-c", "user.email=agent@example.test", "commit", "--quiet", "-m", "work of the agent", "--", "committed.txt", "bin")
	}
	f.write(dir, "uncommitted.txt", "not committed\n")
	f.write(dir, ":(glob)x", "magic\n")
	f.write(dir, "-x", "an option\n")
	f.write(dir, "\xff\xfe", "not UTF-8\n")
	f.write(dir, "build/agent", "ignored\n")
	f.write(dir, "untracked.txt", "new, and changed\n")
	f.must(os.Chmod(filepath.Join(dir, "untracked.txt"), 0o755))
	f.must(os.RemoveAll(filepath.Join(dir, "link")))
	f.must(os.Symlink("run.sh", filepath.Join(dir, "link")))
	f.must(os.RemoveAll(filepath.Join(dir, "empty")))
	if _, err := os.Stat(filepath.Join(dir, "edited.txt")); err == nil {
		f.write(dir, "edited.txt", "one\n2\nthree\n")
		f.must(os.RemoveAll(filepath.Join(dir, "deleted.txt")))
		f.write(dir, "deleted.txt/now/a/directory", "x\n")
		f.must(os.RemoveAll(filepath.Join(dir, "dir")))
		f.write(dir, "dir", "now a file\n")
	}
	if lib := filepath.Join(dir, "vendor/lib"); isDir(lib) {
		f.write(lib, "lib.txt", "lib, changed\n")
		f.write(lib, "in/deep/new.txt", "deep in\n")
		f.git(lib, "-c", "user.name=agent", "-c", "user.email=agent@example.test", "commit", "--quiet", "-am", "work in the submodule")
	}
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// TestRoundTrip copies every kind of directory in, lets an agent work, and brings the work
// back: as files that are byte-equal, and as commits with the same content.
func TestRoundTrip(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			f := newFixture(t)
			top := k.make(f)
			dir := filepath.Join(top, k.sub)
			dirty(f, dir)
			b := f.copyIn(dir)
			inside := filepath.Join(f.target, k.sub)
			isGit := k.name != "plain"
			if b.Git() != isGit || b.WorkDir() != inside || b.Top != top {
				t.Fatalf("base: git %v, work directory %s, top %s", b.Git(), b.WorkDir(), b.Top)
			}
			if isGit {
				checkRepository(f, top, dir, inside)
			}
			same(t, "copy", tree(t, inside, ".claude"), tree(t, dir, left(isGit, ".claude")...))
			if ch, err := f.work(b).Changes(context.Background()); err != nil || len(ch) > 0 {
				t.Fatalf("changes before any work: %v, %v", ch, err)
			}

			agent(f, inside, isGit)
			if isGit {
				checkFetch(f, b, top)
			}
			kept := tree(t, dir)
			dry, err := f.work(b).Apply(context.Background(), true)
			f.must(err)
			same(t, "the user's files after a dry run", tree(t, dir), kept)
			done, err := f.work(b).Apply(context.Background(), false)
			f.must(err)
			if len(done) == 0 || len(done) != len(dry) {
				t.Errorf("%d changes, %d in the dry run", len(done), len(dry))
			}
			same(t, "the user's files", tree(t, dir, left(isGit, ".claude")...), tree(t, inside, left(isGit, ".claude")...))
			if again, err := f.work(b).Apply(context.Background(), false); err != nil || len(again) > 0 {
				t.Errorf("a second apply: %v, %v", again, err)
			}
		})
	}
}

// left are the files that a repository's copy does not have.
func left(isGit bool, more ...string) []string {
	if !isGit {
		return more
	}
	return append([]string{"build", "ignored.o"}, more...)
}

// checkRepository verifies that the copy is a complete repository in the same state.
func checkRepository(f *fixture, top, dir, inside string) {
	f.Helper()
	out, err := f.tryGit(inside, "fsck", "--full", "--no-dangling")
	if err != nil && !strings.Contains(out, "unborn") {
		f.Errorf("git fsck: %v\n%s", err, out)
	}
	for _, args := range [][]string{
		{"status", "--porcelain=v2", "--branch", "--ignore-submodules=none"}, {"diff", "--cached"}, {"for-each-ref"}, {"rev-parse", "--symbolic-full-name", "HEAD"},
	} {
		want, werr := f.tryGit(dir, args...)
		got, gerr := f.tryGit(inside, args...)
		want = strings.ReplaceAll(want, "?? .claude/\n", "")
		want = strings.ReplaceAll(want, "? .claude/\n", "")
		if filepath.Base(top) == "lfs" && args[0] == "status" { // without git-lfs, the user's git sees a change
			want = dropLines(want, "big.bin")
		}
		same(f.T, "git "+strings.Join(args, " "), fmt.Sprint(got, gerr), fmt.Sprint(want, werr))
	}
	if alternates, err := os.ReadFile(filepath.Join(f.target, ".git/objects/info/alternates")); err == nil {
		f.Errorf("the copy has alternates: %s", alternates)
	}
}

func dropLines(text, part string) string {
	var out []string
	for line := range strings.SplitSeq(text, "\n") {
		if !strings.Contains(line, part) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}

// checkFetch fetches and compares commits and content.
func checkFetch(f *fixture, b *Base, top string) {
	f.Helper()
	fetched, err := f.work(b).Fetch(context.Background(), "impl", "bottle/impl")
	f.must(err)
	root := fetched[len(fetched)-1]
	if root.Repo != "." || !root.Uncommitted || root.Commits != 1 || !root.New {
		f.Errorf("fetched %+v", fetched)
	}
	head := f.git(f.target, "rev-parse", "HEAD")
	same(f.T, "parent of the branch's tip", f.git(top, "rev-parse", "bottle/impl~1"), head)
	if b.Repos[0].Head != "" {
		same(f.T, "parent of the agent's commit", f.git(top, "rev-parse", "bottle/impl~2"), b.Repos[0].Head)
	}
	if out, err := f.tryGit(top, "fsck", "--no-dangling", "--connectivity-only"); err != nil {
		f.Errorf("git fsck: %v\n%s", err, out)
	}
	for _, r := range b.Repos {
		checkContent(f, filepath.Join(top, r.Path), filepath.Join(f.target, r.Path))
	}
	if left, _ := filepath.Glob(filepath.Join(top, ".git/bottle-*")); len(left) > 0 {
		f.Errorf("left behind: %v", left)
	}
	again, err := f.work(b).Fetch(context.Background(), "impl", "bottle/impl")
	f.must(err)
	if len(again) != len(fetched) {
		f.Errorf("second fetch: %+v", again)
	}
}

// checkContent compares the fetched branch with the files inside.
func checkContent(f *fixture, host, inside string) {
	f.Helper()
	out := filepath.Join(f.TempDir(), "out")
	f.must(os.Mkdir(out, 0o755))
	f.git(host, "--work-tree="+out, "-c", "core.sparseCheckout=false", "read-tree", "--index-output="+out+".index", "bottle/impl")
	cmd := exec.Command("git", "--work-tree="+out, "checkout-index", "--all")
	cmd.Dir, cmd.Env = host, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.caller.Home, "GIT_INDEX_FILE=" + out + ".index", "GIT_DIR=" + f.git(host, "rev-parse", "--absolute-git-dir")}
	if text, err := cmd.CombinedOutput(); err != nil {
		f.Errorf("git checkout-index: %v\n%s", err, text)
	}
	same(f.T, "content of the branch in "+host, stored(tree(f.T, out)), stored(tree(f.T, inside, "vendor/lib", "in/deep")))
}

// notCompared are lines of a tree that differ between a branch and the files: ignored
// files, those outside a sparse checkout, and a Git LFS file, of which git stores a
// pointer.
var notCompared = regexp.MustCompile(`^"([^"]*/)?build/|ignored\.o"|^"apps/two/|^"libs/|^"big\.bin"|" d`)

func stored(tree string) string {
	var out []string
	for line := range strings.SplitSeq(tree, "\n") {
		if !notCompared.MatchString(line) {
			out = append(out, line)
		}
	}
	return strings.Join(out, "\n")
}
