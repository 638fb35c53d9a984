package manifest

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

// CheckOwner checks that nobody but the caller and root can have written a manifest
// that was found and not named: the file and the directories that lead to it belong to
// one of the two and are not writable by others. A directory with the sticky bit, such
// as /tmp, may be writable by others, as they cannot replace what is not theirs there.
func CheckOwner(path string, c caller.Caller) error {
	path, err := c.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("read the manifest: %w", err)
	}
	for at := path; ; at = filepath.Dir(at) {
		fi, err := c.Stat(at)
		if err != nil {
			return fmt.Errorf("read the manifest: %w", err)
		}
		if why := writableByOthers(fi, c); why != "" {
			return &hint.Error{
				Err:  fmt.Errorf("the manifest %s may be another user's: %s %s", path, at, why),
				Hint: "check what it says, then name it: --manifest " + path,
			}
		}
		if at == filepath.Dir(at) {
			return nil
		}
	}
}

// writableByOthers says how users other than root and the caller can write to a file
// or directory; empty: they cannot.
func writableByOthers(fi fs.FileInfo, c caller.Caller) string {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return "has no known owner"
	}
	mode := fi.Mode()
	sticky := mode.IsDir() && mode&fs.ModeSticky != 0
	// On systems where each user has a private group, its id is the user's.
	private := int(st.Gid) == 0 || int(st.Gid) == c.GID && c.GID == c.UID
	switch {
	case st.Uid != 0 && int(st.Uid) != c.UID:
		return fmt.Sprintf("belongs to user %d", st.Uid)
	case mode.Perm()&0o002 != 0 && !sticky:
		return "is writable by all users"
	case mode.Perm()&0o020 != 0 && !sticky && !private:
		return fmt.Sprintf("is writable by group %d", st.Gid)
	}
	return ""
}
