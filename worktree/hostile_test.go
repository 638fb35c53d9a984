package worktree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// armed gives a repository settings that start programs. Each program leaves a mark, but
// not inside the bottle, where the agent may start what it likes. The returned function
// reports whether one was started.
func armed(f *fixture, dir string) func() string {
	mark := filepath.Join(f.TempDir(), "mark")
	script := filepath.Join(f.TempDir(), "script")
	f.must(os.WriteFile(script, []byte("#!/bin/sh\n[ -n \"$BOTTLE_INSIDE\" ] || echo \"$0 $*\" >>"+mark+"\ncat\n"), 0o755))
	hooks := filepath.Join(dir, ".git/hooks")
	f.must(os.MkdirAll(hooks, 0o755))
	for _, hook := range []string{"reference-transaction", "post-checkout", "post-merge", "post-index-change", "pre-auto-gc", "update", "post-update", "pre-commit", "post-rewrite", "proc-receive", "pre-receive"} {
		f.must(os.WriteFile(filepath.Join(hooks, hook), []byte("#!/bin/sh\n[ -n \"$BOTTLE_INSIDE\" ] || echo "+hook+" >>"+mark+"\n"), 0o755))
	}
	for _, kv := range [][2]string{
		{"core.fsmonitor", script}, {"core.pager", script}, {"core.sshCommand", script}, {"core.editor", script}, {"core.askPass", script},
		{"core.alternateRefsCommand", script}, {"diff.external", script}, {"credential.helper", "!" + script}, {"gpg.program", script},
		{"filter.evil.clean", script}, {"filter.evil.smudge", script}, {"filter.evil.required", "true"}, {"diff.evil.textconv", script}, {"diff.evil.command", script},
		{"merge.evil.driver", script}, {"protocol.allow", "always"}, {"protocol.ext.allow", "always"}, {"url.ext::" + script + " .insteadOf", "/"},
		{"uploadpack.packObjectsHook", script}, {"core.hooksPath", hooks}, {"alias.status", "!" + script}, {"gc.auto", "1"},
	} {
		f.git(dir, "config", kv[0], kv[1])
	}
	f.write(dir, ".gitattributes", "* filter=evil diff=evil merge=evil\n")
	f.write(dir, ".gitmodules", "[submodule \"x\"]\n\tpath = x\n\turl = ext::"+script+"\n")
	return func() string {
		data, err := os.ReadFile(mark)
		if err != nil && !os.IsNotExist(err) {
			f.Fatal(err)
		}
		return string(data)
	}
}

// bringBack uses every way out.
func bringBack(f *fixture, w *Work) (fetch, apply error) {
	_, fetch = w.Fetch(context.Background(), "impl", "bottle/impl")
	_, _ = w.Diff(context.Background(), io.Discard, true, false)
	_, _ = w.Diff(context.Background(), io.Discard, false, false)
	_, apply = w.Apply(context.Background(), false)
	out := f.TempDir()
	_ = w.CopyOut(context.Background(), w.Base.Target, out)
	_ = w.CopyOut(context.Background(), w.Base.Target+"/.git", out)
	if found, _ := filepath.Glob(out + "/*/.[gG][iI][tT]"); len(found) > 0 {
		f.Errorf("copied out: %v", found)
	}
	return fetch, apply
}

// inside marks the agent's processes for the programs of armed.
var inside = local{env: []string{"BOTTLE_INSIDE=1"}}

// TestNothingRuns: neither the user's repository nor the agent's starts a program on the
// host. In the control git, with the same settings, starts them.
func TestNothingRuns(t *testing.T) {
	for _, side := range []string{"user", "agent"} {
		t.Run(side, func(t *testing.T) {
			f := newFixture(t)
			f.commit(f.dir, content)
			var marks func() string
			if side == "user" {
				marks = armed(f, f.dir)
				f.write(f.dir, "edited.txt", "ONE\ntwo\nthree\n") // of the same size
			}
			b := f.copyIn(f.dir)
			if side == "agent" {
				marks = armed(f, f.target)
			}
			f.write(f.target, "modified.txt", "by the agent\n")
			f.write(f.target, "new.txt", "new\n")
			w := f.work(b)
			w.Inside = inside
			fetch, apply := bringBack(f, w)
			if text := marks(); text != "" {
				t.Errorf("programs were started:\n%s", text)
			}
			if apply != nil {
				t.Errorf("apply: %v", apply)
			}
			// The user's own configuration redirects every path, which is refused.
			if side == "user" && (fetch == nil || !strings.Contains(fetch.Error(), "ext")) || side == "agent" && fetch != nil {
				t.Errorf("fetch: %v", fetch)
			}
			dir := map[string]string{"user": f.dir, "agent": f.target}[side]
			_, _ = f.tryGit(dir, "add", "-A")
			_, _ = f.tryGit(dir, "commit", "--quiet", "-m", "control")
			_, _ = f.tryGit(dir, "-c", "diff.external=", "--paginate", "diff", "HEAD~1")
			contains(t, "control", marks(), "script", "pre-commit", "reference-transaction")
		})
	}
}

// TestHostileObjects: objects that git does not accept do not reach the user's repository.
func TestHostileObjects(t *testing.T) {
	for name, c := range map[string]struct {
		tree string // for printf and git mktree, or hash-object
		kind string
		want string
	}{
		"git directory":        {`100644 blob $blob\t.git\n`, "mktree", "hasDotgit"},
		"git in another case":  {`100644 blob $blob\t.GIT\n`, "mktree", "hasDotgit"},
		"git on HFS+":          {`100644 blob $blob\t.g\342\200\214it\n`, "mktree", "hasDotgit"},
		"git on NTFS":          {`100644 blob $blob\tGIT~1\n`, "mktree", "hasDotgit"},
		"parent":               {`100644 blob $blob\t..\n`, "mktree", "hasDotdot"},
		"dot":                  {`100644 blob $blob\t.\n`, "mktree", "hasDot"},
		"gitmodules as a link": {`120000 blob $blob\t.gitmodules\n`, "mktree", "gitmodulesSymlink"},
		"submodule name":       {`100644 blob $modules\t.gitmodules\n`, "mktree", "gitmodulesName"},
		"submodule option":     {`100644 blob $option\t.gitmodules\n`, "mktree", "gitmodulesUrl"},
		"submodule program":    {`100644 blob $update\t.gitmodules\n`, "mktree", "gitmodulesUpdate"},
		"duplicate entries":    {`100644 blob $blob\ta\n`, "twice", "duplicateEntries"},
		"no author":            {`tree $empty\n\nx\n`, "commit", "missingAuthor"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.commit(f.dir, content)
			b := f.copyIn(f.dir)
			script := `set -e
blob=$(echo x | git hash-object -w --stdin)
modules=$(printf '[submodule "../../x"]\n\tpath = x\n\turl = x\n' | git hash-object -w --stdin)
option=$(printf '[submodule "x"]\n\tpath = x\n\turl = -x\n' | git hash-object -w --stdin)
empty=$(git hash-object -w -t tree /dev/null)
update=$(printf '[submodule "x"]\n\tpath = x\n\turl = x\n\tupdate = !x\n' | git hash-object -w --stdin)
case $2 in
mktree) tree=$(printf "$(eval "echo \"$1\"")" | git mktree);;
twice) tree=$(printf "$(eval "echo \"$1\"")" | git mktree); tree=$({ git cat-file tree $tree; git cat-file tree $tree; } | git hash-object -w -t tree --literally --stdin);;
commit) git update-ref HEAD $(printf "$(eval "echo \"$1\"")" | git hash-object -w -t commit --literally --stdin); exit;;
esac
git update-ref HEAD $(git -c user.name=a -c user.email=a commit-tree -p HEAD -m evil $tree)`
			cmd := userCommand(f, f.target, "bash", "-c", script, "bash", c.tree, c.kind)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			evil := f.git(f.target, "rev-parse", "HEAD")
			before := f.git(f.dir, "for-each-ref") + f.git(f.dir, "count-objects", "-v")
			_, err := f.work(b).Fetch(context.Background(), "impl", "bottle/impl")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("fetch: %v, want %s", err, c.want)
			}
			same(t, "the user's repository", f.git(f.dir, "for-each-ref")+f.git(f.dir, "count-objects", "-v"), before)
			if _, err := f.tryGit(f.dir, "cat-file", "-e", evil); err == nil {
				t.Error("the commit reached the user's repository")
			}
			// Control: without verification git takes it.
			f.git(f.dir, "-c", "fetch.fsckObjects=false", "fetch", "--quiet", f.target, evil)
			f.git(f.dir, "cat-file", "-e", evil)
		})
	}
}

// liar is a bottle whose commands answer what the agent likes.
type liar map[string]func(w io.Writer) int

func (l liar) Run(ctx context.Context, c Command) (int, error) {
	key := c.Args[0]
	if key == Program {
		key = c.Args[2]
	}
	answer, ok := l[key]
	if !ok {
		return local{}.Run(ctx, c)
	}
	if c.Stdin != nil {
		go func() { _, _ = io.Copy(io.Discard, c.Stdin) }()
	}
	done := make(chan int, 1)
	go func() { done <- answer(c.Stdout) }()
	select {
	case code := <-done:
		return code, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func says(text string) func(io.Writer) int {
	return func(w io.Writer) int {
		_, _ = io.WriteString(w, text)
		return 0
	}
}

// endless writes until the reader gives up.
func endless(w io.Writer) int {
	block := bytes.Repeat([]byte("f 644 0 0 - 1 0\na\n"), 4096)
	for {
		if _, err := w.Write(block); err != nil {
			return 0
		}
	}
}

// list writes a list with the given entries after those of the base.
func list(b *Base, more ...filetree.Entry) func(io.Writer) int {
	return func(w io.Writer) int {
		l := filetree.NewListWriter(w)
		for _, e := range b.Entries {
			_ = l.Write(e)
		}
		for _, e := range more {
			_ = l.Write(e)
		}
		_ = l.Close()
		return 0
	}
}

func archive(headers ...*tar.Header) func(io.Writer) int {
	return func(w io.Writer) int {
		t := tar.NewWriter(w)
		for _, h := range headers {
			_ = t.WriteHeader(h)
			_, _ = io.WriteString(t, strings.Repeat("x", int(min(h.Size, 10))))
		}
		_ = t.Flush()
		_, _ = w.Write(make([]byte, 1024))
		return 0
	}
}

func file(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}
}

// TestLies has a bottle answer with what its own programs would never write. Nothing
// outside the target changes, and every call ends with an error.
func TestLies(t *testing.T) {
	newFile := func(name string) filetree.Entry { return filetree.Entry{Name: name, Kind: filetree.File, Size: 3} }
	for name, c := range map[string]struct {
		liar func(b *Base) liar
		want error
	}{
		"name leads out":      {func(b *Base) liar { return liar{"list": list(b, newFile("../victim"))} }, filetree.ErrName},
		"absolute name":       {func(b *Base) liar { return liar{"list": list(b, newFile("/etc/victim"))} }, filetree.ErrName},
		"name is not clean":   {func(b *Base) liar { return liar{"list": list(b, newFile("a/../b"))} }, filetree.ErrName},
		"git in another case": {func(b *Base) liar { return liar{"list": list(b, newFile(".GIT/config"))} }, ErrRefused},
		"git's file":          {func(b *Base) liar { return liar{"list": list(b, newFile(".git./hooks/x"))} }, ErrRefused},
		"bottle's own name":   {func(b *Base) liar { return liar{"list": list(b, newFile(stagePrefix+"x/journal"))} }, ErrRefused},
		"link to a secret": {func(b *Base) liar {
			return liar{"list": list(b, filetree.Entry{Name: "l", Kind: filetree.Link, Link: "/etc/shadow"})}
		}, ErrRefused},
		"link to the parent": {func(b *Base) liar {
			return liar{"list": list(b, filetree.Entry{Name: "sub/l", Kind: filetree.Link, Link: "../../victim"})}
		}, ErrRefused},
		"link through a link": {func(b *Base) liar {
			return liar{"list": list(b, filetree.Entry{Name: "l", Kind: filetree.Link, Link: "sub/../../victim"})}
		}, ErrRefused},
		"listed twice":   {func(b *Base) liar { return liar{"list": list(b, b.Entries["a.txt"])} }, filetree.ErrFormat},
		"truncated list": {func(*Base) liar { return liar{"list": says("f 644 1 1 - 1 0\na\n")} }, filetree.ErrFormat},
		"no list":        {func(*Base) liar { return liar{"list": says("")} }, filetree.ErrFormat},
		"long line":      {func(*Base) liar { return liar{"list": says(strings.Repeat("x", 1<<20))} }, filetree.ErrFormat},
		"negative size":  {func(*Base) liar { return liar{"list": says("f 644 -5 1 - 1 0\na\nend 1\n")} }, filetree.ErrFormat},
		"endless list":   {func(*Base) liar { return liar{"list": endless} }, ErrTooLarge},
		"other hashes":   {func(*Base) liar { return liar{"hash": says("f 644 1 1 - 1 0\nz\nend 1\n")} }, filetree.ErrFormat},
		"too large": {func(b *Base) liar {
			return liar{"list": list(b, filetree.Entry{Name: "big", Kind: filetree.File, Size: 100 << 30})}
		}, ErrTooLarge},
		"sizes overflow": {func(b *Base) liar {
			return liar{"list": list(b, filetree.Entry{Name: "x", Kind: filetree.File, Size: 1<<63 - 1}, filetree.Entry{Name: "y", Kind: filetree.File, Size: 1<<63 - 1})}
		}, ErrTooLarge},
		"larger than listed": {func(b *Base) liar { return liar{"list": list(b, newFile("n")), "pack": archive(file("n", 100<<30))} }, ErrTooLarge},
		"other file":         {func(b *Base) liar { return liar{"list": list(b, newFile("n")), "pack": archive(file("../victim", 1))} }, nil},
		"parent of a listed one": {func(b *Base) liar {
			return liar{"list": list(b, newFile("n")), "pack": archive(file("n/../../victim", 1))}
		}, nil},
		"twice": {func(b *Base) liar {
			return liar{"list": list(b, newFile("n")), "pack": archive(file("n", 1), file("n", 1))}
		}, nil},
		"link instead of a file": {func(b *Base) liar {
			return liar{"list": list(b, newFile("n")), "pack": archive(&tar.Header{Typeflag: tar.TypeSymlink, Name: "n", Linkname: "/etc/shadow"})}
		}, nil},
		"device instead of a file": {func(b *Base) liar {
			return liar{"list": list(b, newFile("n")), "pack": archive(&tar.Header{Typeflag: tar.TypeBlock, Name: "n", Devmajor: 8})}
		}, nil},
		"nothing": {func(b *Base) liar { return liar{"list": list(b, newFile("n")), "pack": archive()} }, nil},
		"truncated archive": {func(b *Base) liar {
			return liar{"list": list(b, newFile("n")), "pack": says(strings.Repeat("\x00", 700))}
		}, nil},
		"hangs": {func(*Base) liar { return liar{"list": func(io.Writer) int { select {} }} }, ErrTimeout},
		"hangs in a file": {func(b *Base) liar {
			return liar{"list": list(b, newFile("n")), "pack": func(w io.Writer) int {
				archive(file("n", 1000))(w)
				select {}
			}}
		}, ErrTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.write(f.dir, "a.txt", "a\n")
			f.write(f.dir, "sub/b.txt", "b\n")
			b := f.copyIn(f.dir)
			around := filepath.Dir(f.dir)
			before := tree(t, around)
			w := f.work(b)
			w.Inside, w.Limits.Time, w.Limits.Listing = c.liar(b), 30*time.Second, 64<<20
			if errors.Is(c.want, ErrTimeout) {
				w.Limits.Time = 300 * time.Millisecond
			}
			done, err := w.Apply(context.Background(), false)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("apply: %v, %v, want %v", done, err, c.want)
			}
			same(t, "all files", tree(t, around), before)
		})
	}
}

// TestLiesInCommits has a bottle's shell answer with invalid commits.
func TestLiesInCommits(t *testing.T) {
	answers := []string{
		"bottle-snapshot --upload-pack=x --upload-pack=x yes", "bottle-snapshot - HEAD no", "bottle-snapshot x y", "", "\x1b[2Jbottle-snapshot",
		"bottle-snapshot - " + strings.Repeat("a", 40) + " no", strings.Repeat("x", 1<<20),
	}
	for i, answer := range answers {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			f := newFixture(t)
			f.commit(f.dir, content)
			b := f.copyIn(f.dir)
			before := tree(t, filepath.Dir(f.dir)) + f.git(f.dir, "for-each-ref")
			w := f.work(b)
			w.Inside = liar{"sh": says(answer + "\n")}
			_, err := w.Fetch(context.Background(), "impl", "bottle/impl")
			if err == nil {
				t.Fatal("no error")
			}
			if strings.ContainsRune(err.Error(), '\x1b') {
				t.Errorf("error with an escape: %q", err)
			}
			same(t, "all files", tree(t, filepath.Dir(f.dir))+f.git(f.dir, "for-each-ref"), before)
			if left, _ := filepath.Glob(filepath.Join(f.dir, ".git/bottle-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestCopyOutLies has an archive try to leave the target.
func TestCopyOutLies(t *testing.T) {
	link := func(name, to string) *tar.Header {
		return &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}
	}
	dir := func(name string) *tar.Header { return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o777} }
	top := dir("./")
	for name, headers := range map[string][]*tar.Header{
		"parent":               {top, file("../victim", 1)},
		"deep parent":          {top, file("a/../../victim", 1)},
		"absolute":             {top, file("/tmp/../victim", 1)},
		"through a link":       {top, link("l", "sub"), file("l/victim", 1)},
		"link out":             {top, link("l", "../outside"), file("l/victim", 1)},
		"absolute link":        {top, link("l", "/etc/shadow")},
		"hard link":            {top, {Typeflag: tar.TypeLink, Name: "h", Linkname: "/etc/passwd"}},
		"device":               {top, {Typeflag: tar.TypeChar, Name: "d", Devmajor: 1, Devminor: 3}},
		"FIFO":                 {top, {Typeflag: tar.TypeFifo, Name: "p"}},
		"repository":           {top, dir(".git"), file(".git/config", 3)},
		"repository, folded":   {top, dir("x"), dir("x/.Git"), file("x/.Git/config", 3)},
		"set-user-ID":          {top, {Typeflag: tar.TypeReg, Name: "suid", Mode: 0o6777, Size: 1}},
		"100 GB":               {top, file("big", 100<<30)},
		"a directory's place":  {top, file("sub", 1)},
		"the directory itself": {file("./", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.write(f.dir, "sub/kept.txt", "kept\n")
			f.write(f.dir, "../outside/kept.txt", "kept\n")
			outer := tree(t, filepath.Dir(f.dir), "user")
			w := f.work(&Base{Target: "/workspace"})
			w.Inside = liar{"get": archive(headers...)}
			err := w.CopyOut(context.Background(), "/workspace/.", f.dir)
			same(t, "files outside", tree(t, filepath.Dir(f.dir), "user"), outer)
			inner := tree(t, f.dir)
			for _, bad := range []string{"victim", "shadow", "passwd", `"d"`, `"p"`, "config", "\"suid\" u", "\"big\""} {
				if strings.Contains(inner, bad) {
					t.Errorf("files with %s (error %v):\n%s", bad, err, inner)
				}
			}
			contains(t, "files", inner, "kept.txt")
			if err == nil && len(f.noted) == 0 && name != "set-user-ID" {
				t.Error("neither an error nor a notice")
			}
		})
	}
}

// manyFiles is the number of new files in TestManyFiles. A million takes 5 s.
const manyFiles = 300_000

// TestManyFiles: too many files are an error, with bounded memory.
func TestManyFiles(t *testing.T) {
	f := newFixture(t)
	f.write(f.dir, "a.txt", "a\n")
	b := f.copyIn(f.dir)
	w := f.work(b)
	w.Inside = liar{"list": func(out io.Writer) int {
		l := filetree.NewListWriter(out)
		for i := range manyFiles {
			_ = l.Write(filetree.Entry{Name: fmt.Sprintf("some/directory/%010d", i), Kind: filetree.File})
		}
		_ = l.Close()
		return 0
	}}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	_, err := w.Apply(context.Background(), false)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("apply: %v", err)
	}
	if used := (after.HeapInuse - min(before.HeapInuse, after.HeapInuse)) / manyFiles; used > 1000 {
		t.Errorf("%d bytes of memory for each file", used)
	}
}

// TestSparseFile has a file of 100 GB without content: it is neither read nor written.
func TestSparseFile(t *testing.T) {
	f := newFixture(t)
	f.write(f.dir, "a.txt", "a\n")
	b := f.copyIn(f.dir)
	f.must(os.WriteFile(filepath.Join(f.target, "sparse"), nil, 0o644))
	f.must(os.Truncate(filepath.Join(f.target, "sparse"), 100<<30))
	w := f.work(b)
	if _, err := w.Apply(context.Background(), false); !errors.Is(err, ErrTooLarge) {
		t.Errorf("apply: %v", err)
	}
	if _, err := w.Diff(context.Background(), io.Discard, true, false); !errors.Is(err, ErrTooLarge) {
		t.Errorf("diff: %v", err)
	}
	if err := w.CopyOut(context.Background(), f.target+"/sparse", f.dir); !errors.Is(err, ErrTooLarge) {
		t.Errorf("copy: %v", err)
	}
	same(t, "the user's files", tree(t, f.dir), "\".\" drwxr-xr-x\n\"a.txt\" -rw-r--r-- \"a\\n\"")
	// A smaller one arrives with its holes.
	f.must(os.Truncate(filepath.Join(f.target, "sparse"), 1<<30))
	f.must(w.CopyOut(context.Background(), f.target+"/sparse", f.dir))
	fi, err := os.Stat(filepath.Join(f.dir, "sparse"))
	f.must(err)
	if fi.Size() != 1<<30 || blocks(fi) > 1<<20 {
		t.Errorf("%d bytes, %d on disk", fi.Size(), blocks(fi))
	}
}

// TestAgentsFiles has files on the agent's side that cannot be brought over.
func TestAgentsFiles(t *testing.T) {
	f := newFixture(t)
	f.write(f.dir, "a.txt", "a\n")
	f.write(f.dir, "sub/b.txt", "b\n")
	b := f.copyIn(f.dir)
	secret := filepath.Join(f.TempDir(), "secret")
	f.must(os.WriteFile(secret, []byte("secret"), 0o600))
	f.must(os.Remove(filepath.Join(f.target, "a.txt")))
	f.must(os.Symlink(secret, filepath.Join(f.target, "a.txt"))) // a file becomes a link
	f.must(os.RemoveAll(filepath.Join(f.target, "sub")))
	f.must(os.Symlink(filepath.Dir(secret), filepath.Join(f.target, "sub"))) // a directory, too
	f.write(f.target, "new/.git/hooks/post-checkout", "x")
	deep := f.target
	for range 300 {
		deep += "/d"
	}
	f.must(os.MkdirAll(deep, 0o755))
	w := f.work(b)
	changes, err := w.Changes(context.Background())
	f.must(err)
	for _, c := range changes {
		if strings.Contains(c.Name, "secret") || strings.Contains(c.Name, ".git") {
			t.Errorf("listed: %s", c.Name)
		}
	}
	before := tree(t, f.dir)
	if _, err := w.Apply(context.Background(), false); !errors.Is(err, ErrRefused) {
		t.Errorf("apply: %v", err)
	}
	same(t, "the user's files", tree(t, f.dir), before)
	var diff bytes.Buffer
	_, err = w.Diff(context.Background(), &diff, false, false)
	f.must(err)
	if strings.Contains(strings.ReplaceAll(diff.String(), secret, ""), "secret\n") {
		t.Errorf("the diff follows links:\n%s", &diff)
	}
	if !slices.ContainsFunc(f.noted, func(s string) bool { return strings.Contains(s, "is left out") }) {
		t.Errorf("no notice about the deep directory: %v", f.noted)
	}
}
