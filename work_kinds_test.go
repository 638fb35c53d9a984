package bottle

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/worktree"
)

// kind is a kind of directory that people work in.
type kind struct{ name, script, dir string }

const plainKind = "plain"

// kinds are the kinds of directories that people work in. A script creates each, below the
// working directory; dir is what is copied. TestRoundTrip in package worktree has more of
// what can be in them.
var kinds = []kind{
	{plainKind, `mkdir d; cd d; printf 'original\n' >file; printf 'gone\n' >gone`, "d"},
	{"repository", `repo d`, "d"},
	{"linked worktree", `repo main; git -C main worktree add -q -b topic ../d`, "d"},
	{"nested worktree", `repo main; git -C main worktree add -q -b x .claude/worktrees/x`, "main/.claude/worktrees/x"},
	{"with a nested worktree", `repo d; git -C d worktree add -q -b x .claude/worktrees/x`, "d"},
	{"shared clone", `repo main; git clone -q --shared main d`, "d"},
	{"subdirectory", `repo main apps/one; echo other >main/other; git -C main add -A; git -C main commit -qm other`, "main/apps/one"},
	{"submodules", `repo lib; repo d; git -C d submodule --quiet add "$PWD/lib" lib; git -C d commit -qm lib`, "d"},
	{"shallow clone", `repo main; git -C main commit -q --allow-empty -m next; git clone -q --depth=1 "file://$PWD/main" d`, "d"},
	{"partial clone", `repo main; git -C main config uploadpack.allowFilter true; echo old >main/old; git -C main add -A; git -C main commit -qm old
		git -C main rm -q old; git -C main commit -qm new; git clone -q --filter=blob:none "file://$PWD/main" d`, "d"},
	// What git-lfs stores: the pointer is committed, the content is in the work tree.
	{"git LFS", `repo d; printf 'content\n' >big; sum=$(sha256sum <big); sum=${sum%% *}
		printf 'version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 8\n' "$sum" >d/big.bin; git -C d add -A; git -C d commit -qm pointer; mv big d/big.bin`, "d"},
	{".git is a link", `repo d; mv d/.git elsewhere; ln -s ../elsewhere d/.git`, "d"},
}

const kindsPrelude = `set -e
export GIT_CONFIG_COUNT=4 GIT_CONFIG_KEY_0=protocol.file.allow GIT_CONFIG_VALUE_0=always GIT_CONFIG_KEY_1=init.defaultBranch GIT_CONFIG_VALUE_1=main
export GIT_CONFIG_KEY_2=user.name GIT_CONFIG_VALUE_2=Ada GIT_CONFIG_KEY_3=user.email GIT_CONFIG_VALUE_3=ada@example.test
repo() { # repo NAME [DIRECTORY-OF-FILES]
  git init -q "$1"; mkdir -p "$1/${2:-.}"
  (cd "$1/${2:-.}"; printf 'original\n' >file; printf 'gone\n' >gone; echo '*.o' >.gitignore; git add -A; git commit -qm first)
}
`

// dirtied are the user's changes that agentWork expects, in a directory of every kind.
const dirtied = `printf 'modified\n' >file; printf 'untracked\n' >untracked; [ ! -e .gitignore ] || echo object >ignored.o`

// TestWorkKinds brings work back from a copy of every kind of directory, by fetch and by
// apply. `make test` covers every kind, every end and both runtimes, and every end with
// both runtimes; `make test-faults` runs all combinations.
func TestWorkKinds(t *testing.T) {
	for i, k := range kinds {
		for j, end := range ends() {
			for r, rt := range runtimes {
				if os.Getenv(faultsEnv) != "all" && (j != i%len(ends()) || r != i/len(ends())%len(runtimes)) {
					continue
				}
				t.Run(k.name+"/"+end.how+"/"+rt, func(t *testing.T) {
					leakcheck.Check(t)
					e := openEngine(t)
					removeSockets := shimSockets(t)
					defer removeSockets()
					testWorkKind(t, e, k, rt, end)
				})
			}
		}
	}
}

func testWorkKind(t *testing.T, e *Engine, k kind, rt string, end ending) {
	s := workSpec(t, e, rt, "")
	s.Caller.WorkDir = filepath.Join(s.Caller.WorkDir, k.dir)
	dir := s.Caller.WorkDir
	cmd := exec.CommandContext(t.Context(), "bash", "-c", kindsPrelude+k.script+"\ncd '"+dir+"'\n"+dirtied)
	cmd.Dir = filepath.Dir(s.ManifestPath) + "/work"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b := launchWork(t, e, s)
	in(t, e, b.Name, agentWork)
	submodule := k.name == "submodules"
	if submodule {
		in(t, e, b.Name, "cd lib && echo more >>file && git -c user.name=agent -c user.email=a commit -qam 'in lib'")
	}
	o := agentwork.Options{Caller: s.Caller, Limits: agentwork.DefaultLimits}
	fetch := func(branch string) (tip string) {
		t.Helper()
		fetched, err := e.work.Fetch(t.Context(), b.Name, branch, o)
		if err != nil {
			t.Fatal(err)
		}
		root := fetched[len(fetched)-1]
		if submodule != (len(fetched) == 2) || root.Repo != "." || root.Commits != 1 || !root.Uncommitted || !root.New {
			t.Errorf("fetched %+v", fetched)
		}
		if submodule {
			if got := userGit(t, filepath.Join(dir, "lib"), "log", "-1", "--format=%s", branch); got != "in lib" {
				t.Errorf("the submodule's branch has %q", got)
			}
		}
		if got := userGit(t, dir, "log", "-2", "--format=%s", branch); got != "Uncommitted work\nagent" {
			t.Errorf("the branch has %q", got)
		}
		return userGit(t, dir, "rev-parse", branch+"^{tree}", branch+"~1")
	}
	tip := ""
	if k.name != plainKind {
		tip = fetch("bottle/before")
	}
	end.end(t, e, b)
	if k.name != plainKind {
		if again := fetch("bottle/it"); again != tip {
			t.Errorf("fetched %s while it was running, and %s when %s", tip, again, end.how)
		}
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if err := e.work.CopyOut(t.Context(), b.Name, copiedTo(t, b), copied, o); err != nil {
		t.Fatal(err)
	}
	want := listing(t, copied)
	for _, part := range []string{`"edited\n"`, `"new" -rw-r--r-- "committed\n"`, `"deep/er/binary" -rw-r--r-- "a\x00b"`, `"link" L`} {
		if !strings.Contains(want, part) {
			t.Errorf("the agent's files have no %s:\n%s", part, want)
		}
	}
	if k.name != plainKind {
		if got, want := listing(t, extracted(t, dir, "bottle/it", submodule)), stored(want); stored(got) != want {
			t.Errorf("the branch:\n%s\nthe agent's files:\n%s", got, want)
		}
	}
	if _, err := e.work.Apply(t.Context(), b.Name, false, o); err != nil {
		t.Fatal(err)
	}
	if got := listing(t, dir); got != want {
		t.Errorf("the user's files:\n%s\nthe agent's:\n%s", got, want)
	}
}

// extracted returns a directory with the files of a branch, below the directory dir of its
// repository, and of the submodule's branch of that name.
func extracted(t *testing.T, dir, branch string, submodule bool) string {
	t.Helper()
	out := t.TempDir()
	if err := os.Chmod(out, 0o755); err != nil {
		t.Fatal(err)
	}
	script := `set -e -o pipefail; git -c tar.umask=022 archive "$1" | tar -x -C "$2"`
	if submodule {
		script += `; cd lib; git -c tar.umask=022 archive "$1" | tar -x -C "$2/lib"`
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-c", script, "bash", branch, out)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return out
}

// stored returns the lines of a listing that a branch has. Of a file of Git LFS it has the
// pointer.
func stored(listing string) string {
	var out strings.Builder
	for line := range strings.Lines(listing) {
		if !strings.HasPrefix(line, `"big.bin" `) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// copiedTo returns the directory in the bottle that corresponds to the copied one.
func copiedTo(t *testing.T, b *Bottle) string {
	t.Helper()
	k := kept(t, b.e, b.Name)
	base, err := worktree.Load(b.e.workspaces.Dir(k.Name))
	if err != nil {
		t.Fatal(err)
	}
	return base.WorkDir()
}

// listing describes the files below a directory with their contents, without those of git
// and those that it ignores.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch d.Name() {
		case ".git", ".claude":
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case "ignored.o":
			return nil
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		content := ""
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = string(data)
		case fi.Mode()&fs.ModeSymlink != 0:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		name, err := filepath.Rel(dir, path)
		_, _ = fmt.Fprintf(&out, "%q %s %q\n", name, fi.Mode(), content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}
