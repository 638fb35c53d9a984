package filetree

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "a/b": true, "...": true, "a\nb": true, "-x": true, ".": true, "": false, "/": false, "/a": false, "..": false, "../a": false,
		"a/../b": false, "a/..": false, "a//b": false, "a/": false, "./a": false, "a\x00b": false,
		strings.Repeat("a", MaxName+1): false, strings.Repeat("a/", MaxDepth) + "a": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%.40q: %v", name, err)
		}
	}
}

func TestIsGit(t *testing.T) {
	for name, want := range map[string]bool{
		".git": true, "a/.git/b": true, ".GIT": true, ".Git ": true, ".git.": true, ".git . .": true, "GIT~1": true, ".git:x": true, ".git::$INDEX_ALLOCATION": true,
		".g\u200cit": true, "\ufeff.git": true, ".gitignore": false, ".github": false, "git": false, "a.git": false, ".git2": false, "GIT~2x": false,
	} {
		if got := IsGit(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestLeadsOut(t *testing.T) {
	for _, c := range []struct {
		name, target string
		out          bool
	}{
		{"l", "a", false}, {"l", "a/b", false}, {"l", ".", false}, {"d/l", "..", false}, {"d/l", "../a", false}, {"d/e/l", "../../a", false}, {"d/l", "..//a", false},
		{"l", "..", true}, {"l", "../a", true}, {"d/l", "../..", true}, {"l", "/a", true}, {"l", "", true}, {"l", "a/..", true}, {"l", "a/../../b", true}, {"d/l", "./../..", true},
		{"l", "..a", false},
	} {
		if got := LeadsOut(c.name, c.target); got != c.out {
			t.Errorf("%s -> %s: %v", c.name, c.target, got)
		}
	}
}

// TestLinksAreNotFollowed: no method follows a link, neither in a parent nor at the end.
func TestLinksAreNotFollowed(t *testing.T) {
	base := t.TempDir()
	outside, dir := filepath.Join(base, "outside"), filepath.Join(base, "dir")
	for _, d := range []string{outside, dir} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": outside, "file": outside + "/file"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "link/file")); err != nil {
		t.Fatalf("control: %v", err)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	for what, fn := range map[string]func() error{
		"open":         func() error { _, _, err := r.OpenFile("link/file"); return err },
		"open a link":  func() error { _, _, err := r.OpenFile("file"); return err },
		"create":       func() error { return r.Create("link/new", strings.NewReader("x"), 1, 0o644) },
		"create there": func() error { return r.Create("file", strings.NewReader("x"), 1, 0o644) },
		"mkdir":        func() error { return r.Mkdir("link/new", 0o755) },
		"symlink":      func() error { return r.Symlink("x", "link/new") },
		"unlink":       func() error { return r.Unlink("link/file") },
		"rename from":  func() error { return r.Rename("link/file", "mine") },
		"rename to":    func() error { return r.Rename("file", "link/new") },
		"keep":         func() error { return r.Keep("link/file", "mine") },
		"lock":         func() error { _, err := r.Lock("link"); return err },
		"parent":       func() error { return r.Unlink("../outside/file") },
	} {
		if err := fn(); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if e, err := r.Lstat("link/file"); err != nil || e.Kind != Missing {
		t.Errorf("lstat: %+v, %v", e, err)
	}
	if err := r.RemoveAll("link"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("outside: %v, %v", left, err)
	}
}

func TestListRoundTrip(t *testing.T) {
	want := []Entry{
		{Name: ".", Kind: Dir, Mode: 0o755}, {Name: "a\nb \x1b", Kind: File, Mode: 0o4644, Size: 1 << 40, MTime: -5, Sum: strings.Repeat("\x00", 32)},
		{Name: "l", Kind: Link, Link: "to\nthere"}, {Name: "o", Kind: Other}, {Name: "m", Kind: Missing},
	}
	var b bytes.Buffer
	l := NewListWriter(&b)
	for _, e := range want {
		if err := l.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text := b.Bytes()
	n := 0
	err := ReadList(bytes.NewReader(text), func(e Entry) error {
		if e != want[n] {
			t.Errorf("got %+v, want %+v", e, want[n])
		}
		n++
		return nil
	})
	if err != nil || n != len(want) {
		t.Errorf("%d entries, %v", n, err)
	}
	for i := range text { // every truncation is noticed
		if err := ReadList(bytes.NewReader(text[:i]), func(Entry) error { return nil }); !errors.Is(err, ErrFormat) {
			t.Fatalf("truncated at %d: %v", i, err)
		}
	}
}

// FuzzReadList: whatever a bottle writes, names stay inside, and reading ends.
func FuzzReadList(f *testing.F) {
	f.Add([]byte("d 755 0 0 - 1 0\n.\nf 644 1 2 - 1 0\na\nend 2\n"))
	f.Add([]byte("l 777 0 0 - 1 2\nabc\nend 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = ReadList(bytes.NewReader(data), func(e Entry) error {
			if e.Name != "." && CheckName(e.Name) != nil || e.Size < 0 || len(e.Sum) != 0 && len(e.Sum) != 32 {
				t.Errorf("accepted %+v", e)
			}
			return nil
		})
	})
}

// FuzzUnpack: whatever an archive contains, nothing is written outside.
func FuzzUnpack(f *testing.F) {
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o644); err != nil {
		f.Fatal(err)
	}
	r, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	if err := PackAll(r, ".", ".", &b, func(string) {}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		target := filepath.Join(base, "target")
		if err := os.Mkdir(target, 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := Open(target)
		if err != nil {
			t.Fatal(err)
		}
		_ = Unpack(root, bytes.NewReader(data), Unpacking{UID: -1, GID: -1, MaxBytes: 1 << 20, MaxEntries: 100, Replace: true})
		if err := root.Close(); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadDir(base); err != nil || len(left) != 1 {
			t.Errorf("outside: %v, %v", left, err)
		}
	})
}
