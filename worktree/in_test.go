package worktree

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestIgnored: ignored files are copied on request only, and those that the agent makes
// do not come back, also in directories that are new.
func TestIgnored(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	f.write(f.dir, "x.o", "object\n")
	f.copyIn(f.dir)
	if strings.Contains(tree(t, f.target), "x.o") {
		t.Error("an ignored file was copied")
	}
	f.must(os.RemoveAll(f.target))
	f.must(os.Mkdir(f.target, 0o755))
	b := f.copyIn(f.dir, func(s *Source) { s.Ignored = true })
	contains(t, "the copy", tree(t, f.target), "x.o")
	f.write(f.target, "y.o", "object\n")
	f.write(f.target, "project/.gitignore", "node_modules/\n!keep.o\n")
	f.write(f.target, "project/node_modules/a/b.js", "x\n")
	f.write(f.target, "project/keep.o", "x\n")
	f.write(f.target, "x.o", "changed\n")
	changes, err := f.work(b).Changes(context.Background())
	f.must(err)
	var names []string
	for _, c := range changes {
		names = append(names, c.Name)
	}
	same(t, "changes", strings.Join(names, " "), "project project/.gitignore project/keep.o x.o")
}

// TestNotIgnored: of files that may hold credentials, those that are not copied are left
// out.
func TestNotIgnored(t *testing.T) {
	f := newFixture(t)
	all := []string{".env", ".git/config", "sub/.git/config", "x.o", "binary"}
	same(t, "plain", strings.Join(NotIgnored(context.Background(), f.caller, f.dir, all), " "), ".env x.o binary")
	f.commit(f.dir, content)
	same(t, "repository", strings.Join(NotIgnored(context.Background(), f.caller, f.dir, all), " "), ".env binary")
}

// TestLeftOut: what .bottleignore lists is not copied. git does not take it for deleted,
// and it stays on the way back.
func TestLeftOut(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	f.write(f.dir, ".bottleignore", "dir\nbinary\n")
	b := f.copyIn(f.dir)
	if text := tree(t, f.target); strings.Contains(text, "kept.txt") || strings.Contains(text, `"binary"`) {
		t.Errorf("the copy:\n%s", text)
	}
	same(t, "git status", f.git(f.target, "status", "--porcelain"), "?? .bottleignore")
	f.write(f.target, "edited.txt", "x\n")
	_, err := f.work(b).Apply(context.Background(), false)
	f.must(err)
	contains(t, "the user's files", tree(t, f.dir), "kept.txt", "binary")
	_, err = f.work(b).Fetch(context.Background(), "x", "bottle/x")
	f.must(err)
	contains(t, "the branch", f.git(f.dir, "ls-tree", "-r", "--name-only", "bottle/x"), "dir/kept.txt", "binary")
}

// TestConfig: the copy has no programs and no credentials in its configuration.
func TestConfig(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	armed(f, f.dir)
	for _, kv := range [][2]string{
		{"remote.origin.url", "https://ada:token@git.example.test/x.git?private_token=token"}, {"remote.odd.url", "https://token%zz@git.example.test/x.git"},
		{"remote.ssh.url", "ssh://git:token@git.example.test/x.git"}, {"remote.scp.url", "git@git.example.test:x.git"},
		{"remote.origin.fetch", "+refs/heads/*:refs/remotes/origin/*"}, {"branch.main.remote", "origin"}, {"core.autocrlf", "input"},
		{"http.extraHeader", "Authorization: token"}, {"submodule.a \"b\\c.url", "https://token@git.example.test/y"},
	} {
		f.git(f.dir, "config", kv[0], kv[1])
	}
	f.copyIn(f.dir)
	data, err := os.ReadFile(filepath.Join(f.target, ".git/config"))
	f.must(err)
	for _, bad := range []string{"token", "script", "hooks", "evil", "filter"} {
		if strings.Contains(string(data), bad) {
			t.Errorf("the configuration has %q:\n%s", bad, data)
		}
	}
	for key, want := range map[string]string{
		"remote.origin.url": "https://git.example.test/x.git", "remote.odd.url": "https://git.example.test/x.git",
		"remote.ssh.url": "ssh://git@git.example.test/x.git", "remote.scp.url": "git@git.example.test:x.git",
		"branch.main.remote": "origin", "core.autocrlf": "input", "submodule.a \"b\\c.url": "https://git.example.test/y",
	} {
		same(t, key, f.git(f.target, "config", "--local", "--get", key), want)
	}
	if _, err := os.Stat(filepath.Join(f.target, ".git/hooks")); err == nil {
		t.Error("hooks were copied")
	}
}

// TestUnusableRepository: a repository that git cannot use is copied as a directory, with
// a notice.
func TestUnusableRepository(t *testing.T) {
	f := newFixture(t)
	f.write(f.dir, "a.txt", "a\n")
	f.write(f.dir, ".git", "gitdir: /nonexistent\n")
	b := f.copyIn(f.dir)
	if b.Git() || len(f.noted) != 1 || !strings.Contains(f.noted[0], "without its git repository") {
		t.Errorf("git %v, notices %q", b.Git(), f.noted)
	}
	same(t, "the copy", tree(t, f.target), tree(t, f.dir))
}

// TestBelowRepository: a directory of which a repository above tracks nothing is plain.
func TestBelowRepository(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	f.write(f.dir, "projects/x/a.txt", "a\n")
	b := f.copyIn(filepath.Join(f.dir, "projects/x"))
	if b.Git() || b.Prefix != "" {
		t.Errorf("git %v, prefix %q", b.Git(), b.Prefix)
	}
	same(t, "the copy", tree(t, f.target), "\".\" drwxr-xr-x\n\"a.txt\" -rw-r--r-- \"a\\n\"")
}

// TestPlainWithRepositories: repositories in a plain directory are copied as such.
func TestPlainWithRepositories(t *testing.T) {
	f := newFixture(t)
	f.commit(filepath.Join(f.dir, "one"), content)
	f.commit(filepath.Join(f.dir, "sub/two"), content)
	b := f.copyIn(f.dir)
	if b.Git() || len(b.Repos) != 2 {
		t.Errorf("repositories %+v", b.Repos)
	}
	same(t, "git status", f.git(filepath.Join(f.target, "sub/two"), "status", "--porcelain"), "")
	f.write(f.target, "sub/two/x.o", "ignored\n")
	f.write(f.target, "sub/two/x", "new\n")
	changes, err := f.work(b).Changes(context.Background())
	f.must(err)
	if len(changes) != 1 || changes[0].Name != "sub/two/x" {
		t.Errorf("changes %+v", changes)
	}
}

// TestCopyOfAnother runs as root for another user: git and all reads have that user's
// rights, and what a third user owns is refused.
func TestCopyOfAnother(t *testing.T) {
	f := newFixture(t)
	for d := f.dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		f.must(os.Chmod(d, 0o755))
	}
	f.commit(f.dir, content)
	const uid, other = 4242, 4243
	chown := func(id int) {
		f.must(filepath.WalkDir(f.dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, id, id)
		}))
	}
	f.caller.UID, f.caller.GID = uid, uid
	chown(other)
	if _, err := f.tryCopyIn(f.dir); !errors.Is(err, ErrOwner) {
		t.Errorf("a repository of a third user: %v", err)
	}
	chown(uid)
	f.must(os.WriteFile(filepath.Join(f.dir, "secret"), nil, 0o600)) // root's
	if _, err := f.tryCopyIn(f.dir); !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "secret") {
		t.Errorf("a file of root's: %v", err)
	}
	f.must(os.Remove(filepath.Join(f.dir, "secret")))
	f.must(os.RemoveAll(f.target))
	f.must(os.Mkdir(f.target, 0o755))
	b := f.copyIn(f.dir)
	f.write(f.target, "new.txt", "new\n")
	_, err := f.work(b).Fetch(context.Background(), "x", "bottle/x")
	f.must(err)
	_, err = f.work(b).Apply(context.Background(), false)
	f.must(err)
	for _, name := range []string{"new.txt", ".git/refs/heads/bottle/x"} {
		if fi, err := os.Lstat(filepath.Join(f.dir, name)); err != nil || owner(fi) != uid {
			t.Errorf("%s: %v, owner %d", name, err, owner(fi))
		}
	}
	// The agent makes a directory of root's a target: the user cannot write there.
	f.must(os.Mkdir(filepath.Join(filepath.Dir(f.dir), "roots"), 0o755))
	if err := f.work(b).CopyOut(context.Background(), f.target+"/new.txt", filepath.Join(filepath.Dir(f.dir), "roots")); !errors.Is(err, os.ErrPermission) {
		t.Errorf("copy to a directory of root's: %v", err)
	}
}
