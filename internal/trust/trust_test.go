package trust

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"
)

func newStore(t *testing.T, env map[string]string) Store {
	t.Helper()
	return Of(caller.Caller{
		Getenv: func(name string) (string, bool) { v, ok := env[name]; return v, ok },
		Home:   t.TempDir(), UID: os.Getuid(), GID: os.Getgid(),
	})
}

func (s Store) mustApprove(t *testing.T, path, content string) {
	t.Helper()
	if err := s.Approve(path, content); err != nil {
		t.Fatal(err)
	}
}

func (s Store) want(t *testing.T, path, content string, approved bool, text string) {
	t.Helper()
	got, err := s.Check(path, content)
	if err != nil || got.Approved != approved || got.Text != text {
		t.Errorf("%s with %q: %+v, %v; want approved %v and the text %q", path, content, got, err, approved, text)
	}
	if approved && (got.Path != path || got.SHA256 != Sum(content) || got.Time.IsZero()) {
		t.Errorf("%s with %q: %+v", path, content, got.Approval)
	}
}

func TestApprove(t *testing.T) {
	s := newStore(t, nil)
	s.want(t, "/a", "one", false, "")
	s.mustApprove(t, "/a", "one")
	s.want(t, "/a", "one", true, "one")
	s.want(t, "/a", "two", false, "one")
	s.want(t, "/b", "one", false, "") // another path
	s.mustApprove(t, "/a", "two")
	s.want(t, "/a", "two", true, "two")
	s.want(t, "/a", "one", true, "two")
	s.mustApprove(t, "/a", "one")
	s.mustApprove(t, "/b", "")
	list, err := s.List()
	var got []string
	for _, a := range list {
		got = append(got, a.Path+" "+a.SHA256)
	}
	if want := []string{"/a " + Sum("one"), "/a " + Sum("two"), "/b " + Sum("")}; err != nil || !slices.Equal(got, want) {
		t.Errorf("list %q, %v; want %q", got, err, want)
	}
	if removed, err := s.Revoke("/a"); err != nil || !removed {
		t.Errorf("revoke: %v, %v", removed, err)
	}
	if removed, err := s.Revoke("/a"); err != nil || removed {
		t.Errorf("revoke again: %v, %v", removed, err)
	}
	s.want(t, "/a", "one", false, "")
	s.want(t, "/a", "two", false, "")
	s.want(t, "/b", "", true, "")
}

// TestApprovalsAreBounded: the oldest approvals of a path are forgotten.
func TestApprovalsAreBounded(t *testing.T) {
	s := newStore(t, nil)
	for i := range maxApprovals + 1 {
		s.mustApprove(t, "/a", fmt.Sprint(i))
	}
	newest := fmt.Sprint(maxApprovals)
	s.want(t, "/a", "0", false, newest)
	s.want(t, "/a", "1", true, newest)
	s.want(t, "/a", newest, true, newest)
	large := strings.Repeat("\x01", 1<<20) // six characters each in JSON
	s.mustApprove(t, "/large", large)
	s.want(t, "/large", large, true, large)
}

// TestForeignRecords: a file that others can write, that belongs to another path or
// that is not a record is not an approval.
func TestForeignRecords(t *testing.T) {
	for name, c := range map[string]struct {
		change func(file string) error
		failed bool
	}{
		"control":          {func(string) error { return nil }, false},
		"readable by all":  {func(file string) error { return os.Chmod(file, 0o644) }, true},
		"writable by all":  {func(file string) error { return os.Chmod(file, 0o602) }, true},
		"not a record":     {func(file string) error { return os.WriteFile(file, []byte("{"), 0o600) }, true},
		"of another path":  {func(file string) error { return os.Rename(filepath.Join(filepath.Dir(file), Sum("/b")+".json"), file) }, false},
		"a directory":      {func(file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) }, true},
		"a link elsewhere": {func(file string) error { return errors.Join(os.Remove(file), os.Symlink("/etc/hostname", file)) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStore(t, nil)
			s.mustApprove(t, "/a", "text")
			s.mustApprove(t, "/b", "text")
			if err := c.change(s.file("/a")); err != nil {
				t.Fatal(err)
			}
			got, err := s.Check("/a", "text")
			if (err != nil) != c.failed || got.Approved != (name == "control") {
				t.Errorf("got %+v, %v", got, err)
			}
			if err := s.Approve("/a", "text"); (err != nil) != c.failed {
				t.Errorf("approve: %v", err)
			}
		})
	}
}

func TestPlace(t *testing.T) {
	state := t.TempDir()
	s := newStore(t, map[string]string{"XDG_STATE_HOME": state})
	s.mustApprove(t, "/a", "text")
	if entries, err := os.ReadDir(filepath.Join(state, "bottle/trust")); err != nil || len(entries) != 1 {
		t.Errorf("got %v, %v", entries, err)
	}
	s = newStore(t, map[string]string{"XDG_STATE_HOME": "relative"})
	if want := filepath.Join(s.caller.Home, ".local/state/bottle/trust"); s.dir != want {
		t.Errorf("got %s, want %s", s.dir, want)
	}
	s = Of(caller.Caller{Getenv: func(string) (string, bool) { return "", false }})
	s.want(t, "/a", "text", false, "")
	if err := s.Approve("/a", "text"); !errors.Is(err, ErrNoDir) {
		t.Errorf("without a home: %v", err)
	}
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("without a home: %v, %v", list, err)
	}
	if removed, err := s.Revoke("/a"); err != nil || removed {
		t.Errorf("without a home: %v, %v", removed, err)
	}
}
