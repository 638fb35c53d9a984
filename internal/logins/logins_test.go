package logins

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
)

func testCaller(t *testing.T) caller.Caller {
	t.Helper()
	return caller.Caller{Home: t.TempDir(), UID: os.Getuid(), GID: os.Getgid()}
}

// TestStore writes, replaces, reads and removes a login, and checks modes.
func TestStore(t *testing.T) {
	c := testCaller(t)
	if l, err := Read(c, "claude"); l != nil || err != nil {
		t.Fatalf("before: %v, %v", l, err)
	}
	for _, value := range []string{"s3cret=1", "another"} {
		if err := Write(c, "claude", "TOKEN", secret.New(value)); err != nil {
			t.Fatal(err)
		}
		l, err := Read(c, "claude")
		if err != nil || l.Variable != "TOKEN" || l.Value.Reveal() != value || l.Path != Path(c, "claude") {
			t.Fatalf("%+v, %v", l, err)
		}
	}
	for path, want := range map[string]os.FileMode{Path(c, "claude"): 0o600, filepath.Dir(Path(c, "claude")): 0o700 | os.ModeDir} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, fi.Mode(), err, want)
		}
	}
	for _, want := range []bool{true, false} {
		if removed, err := Remove(c, "claude"); removed != want || err != nil {
			t.Errorf("removed %v, %v; want %v", removed, err, want)
		}
	}
}

// TestRefused: a file that others can read is refused, and a broken one is an error;
// neither error shows the content.
func TestRefused(t *testing.T) {
	c := testCaller(t)
	if err := Write(c, "claude", "TOKEN", secret.New("s3cret")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(Path(c, "claude"), 0o644); err != nil {
		t.Fatal(err)
	}
	if l, err := Read(c, "claude"); err == nil || !strings.Contains(hint.Of(err), "chmod 600") {
		t.Errorf("readable by others: %v, %v", l, err)
	}
	for _, text := range []string{"", "s3cret", "TOKEN=", "=s3cret"} {
		if err := os.WriteFile(Path(c, "codex"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := Read(c, "codex"); err == nil || strings.Contains(err.Error(), "s3cret") || hint.Of(err) == "" {
			t.Errorf("%q: %v, %v", text, l, err)
		}
	}
	if l, err := Read(caller.Caller{}, "claude"); l != nil || err != nil {
		t.Errorf("without a home: %v, %v", l, err)
	}
	if err := Write(caller.Caller{}, "claude", "TOKEN", secret.New("x")); err == nil {
		t.Error("stored without a home")
	}
}

func TestClean(t *testing.T) {
	for text, want := range map[string]string{" s3cret\n": "s3cret", "a b\r\n": "a b", "": "", " \n": "", "a\nb": "", "a\x00b": "", strings.Repeat("x", MaxValue+1): ""} {
		got, err := Clean([]byte(text))
		if (err == nil) != (want != "") || err == nil && got.Reveal() != want {
			t.Errorf("%.20q: %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("shows the value: %v", err)
		}
	}
}
