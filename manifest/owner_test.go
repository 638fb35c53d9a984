package manifest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

// testCaller is the user who runs the tests.
var testCaller = caller.Caller{UID: os.Getuid(), GID: os.Getgid()}

// TestCheckOwner changes the mode of a manifest and of a directory above it.
func TestCheckOwner(t *testing.T) {
	me := testCaller
	for name, c := range map[string]struct {
		at   string // what gets the mode
		mode os.FileMode
		by   caller.Caller
		want string
	}{
		"own":                     {"sub/bottle.yaml", 0o644, me, ""},
		"file of everybody":       {"sub/bottle.yaml", 0o646, me, "is writable by all users"},
		"directory of everybody":  {".", 0o757, me, "is writable by all users"},
		"sticky directory":        {".", 0o777 | os.ModeSticky, me, ""},
		"own group":               {"sub", 0o775, me, ""},
		"a group that is not own": {"sub", 0o775, caller.Caller{UID: me.UID, GID: me.GID + 1}, "is writable by group"},
		"another user's":          {"sub", 0o755, caller.Caller{UID: me.UID + 4242, GID: 4242}, "belongs to user"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil { // for the other user
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "sub", "bottle.yaml")
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			// Only root can give a file to another user or group.
			if os.Getuid() == 0 {
				uid, gid := me.UID, me.GID
				if c.by.GID != me.GID {
					gid = 4343
				}
				if c.by.UID != me.UID {
					uid = 4343
				}
				if err := os.Chown(filepath.Join(dir, "sub"), uid, gid); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(filepath.Join(dir, c.at), c.mode); err != nil {
				t.Fatal(err)
			}
			err := CheckOwner(path, c.by)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || hint.Of(err) != "check what it says, then name it: --manifest "+path) {
				t.Errorf("got %v (hint %q), want %q", err, hint.Of(err), c.want)
			}
		})
	}
}
