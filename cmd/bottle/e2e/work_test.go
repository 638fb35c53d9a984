package e2e

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestCp copies files out of a running bottle and into it, under both runtimes.
func TestCp(t *testing.T) {
	for _, rt := range []string{"runsc", "runc"} {
		t.Run(rt, func(t *testing.T) {
			leakcheck.Check(t)
			u := newUser(t)
			name := "claude-bottle-cp"
			l := begin(t, u.command("run", "wait", "--name", name, "--runtime", rt, "--proxy", "builtin", "--yes"), name)
			big := make([]byte, 20<<20)
			_, _ = rand.Read(big)
			u.write("big", string(big))
			u.mkdirs("dir")
			u.write("dir/a\nb", "odd\n")
			u.bottle("cp", "big", "cp:/tmp").want(t, 0, "")
			u.bottle("cp", "./dir", "cp:tmp/copy").want(t, 0, "")
			u.exec(name, "sh", "-c", "cat /tmp/copy/*; stat -c %U /tmp/big; ln -s /etc/shadow /tmp/copy/link; mkfifo /tmp/copy/fifo; mkdir /tmp/copy/.git").want(t, 0, "odd\nagent\n")
			u.bottle("cp", "cp:/tmp/big", "back").want(t, 0, "")
			if data, err := os.ReadFile(filepath.Join(u.dir, "back")); err != nil || string(data) != string(big) {
				t.Errorf("%d bytes came back, %v", len(data), err)
			}
			r := u.bottle("cp", "cp:/tmp/copy", ".")
			r.want(t, 0, "")
			for _, left := range []string{"link", "fifo", ".git"} {
				if _, err := os.Lstat(filepath.Join(u.dir, "copy", left)); err == nil || !strings.Contains(r.stderr, left) {
					t.Errorf("%s was copied, or nothing was said about it:\n%s", left, r.stderr)
				}
			}
			if data, err := os.ReadFile(filepath.Join(u.dir, "copy/a\nb")); err != nil || string(data) != "odd\n" {
				t.Errorf("a directory: %q, %v", data, err)
			}
			for _, c := range []struct {
				args []string
				want string
			}{
				{[]string{"cp:/no/such", "."}, "no such file"},
				{[]string{"no-such", "cp:/tmp"}, "no such file"},
				{[]string{"big", "cp:/etc"}, "permission denied"},
				{[]string{"big", "cp:/no/such/dir/"}, "no such directory"},
				{[]string{"cp:/tmp/big", "x", "--max-size", "1m"}, "too large"},
				{[]string{"cp:/tmp/copy/.git", "."}, "git repository"},
			} {
				oneLine(t, u.bottle(append([]string{"cp"}, c.args...)...), c.want)
			}
			if code := l.end(); code != 0 {
				t.Errorf("exit %d\n%s", code, l.errs)
			}
			oneLine(t, u.bottle("cp", "cp:/tmp/big", "."), "no such bottle")
		})
	}
}

// TestApply brings the work of a running agent back: as a patch, as a dry run and into the
// user's files, and refuses a conflict.
func TestApply(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("file", "original\n")
	name := "claude-bottle-apply"
	l := begin(t, u.command("run", "wait", "--name", name, "--cwd", "--proxy", "builtin", "--yes", "-q"), name)
	u.bottle("apply", "apply").want(t, 0, "")
	u.exec(name, "sh", "-c", "echo edited >file; echo new >new").want(t, 0, "")
	if r := u.bottle("diff", "apply"); r.code != 0 || !strings.Contains(r.stdout, "-original\n+edited\n") {
		t.Errorf("diff: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if r := u.bottle("diff", "apply", "--stat"); r.code != 0 || !strings.Contains(r.stdout, "2 files changed") {
		t.Errorf("diff --stat: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	oneLine(t, u.bottle("fetch", "apply"), "not a git repository", "bottle apply")
	u.bottle("apply", "apply", "--dry-run").want(t, 0, "M file\nA new\n")
	u.write("file", "mine\n")
	oneLine(t, u.bottle("apply", "apply"), "conflict: file", "bottle cp")
	u.write("file", "original\n")
	u.bottle("apply", "apply").want(t, 0, "M file\nA new\n")
	if data, err := os.ReadFile(filepath.Join(u.dir, "file")); err != nil || string(data) != "edited\n" {
		t.Errorf("the user's file: %q, %v", data, err)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
	// The work outlives the bottle.
	if r := u.bottle("apply", "apply"); r.code != 0 || !strings.Contains(r.stderr, "have all changes") {
		t.Errorf("apply after the end: exit %d\n%s", r.code, r.stderr)
	}
	u.bottle("rm", "--discard", "apply").want(t, 0, name+"\n")
	oneLine(t, u.bottle("apply", "apply"), "no such bottle")
}
