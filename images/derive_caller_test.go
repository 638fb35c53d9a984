package images_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/asuser"
)

// Ids of a caller that need not exist.
const callerID, callerGroup, projectGroup = 41001, 42001, 42002

var caller = asuser.User{UID: callerID, GID: callerGroup, Groups: []int{projectGroup}}

// newCallerDir returns a working directory that belongs to the caller.
func newCallerDir(t *testing.T) *workDir {
	t.Helper()
	f := newWorkDir(t)
	f.d.Caller = caller
	for _, dir := range []string{filepath.Dir(f.d.Dir), filepath.Dir(filepath.Dir(f.d.Dir))} {
		must(t, os.Chmod(dir, 0o755))
	}
	must(t, os.Chown(f.d.Dir, callerID, callerGroup))
	return f
}

func (f *workDir) writeAs(name string, uid, gid int, mode fs.FileMode) {
	f.t.Helper()
	f.write(name, name, mode)
	must(f.t, os.Chown(f.path(name), uid, gid))
}

// refused expects that the caller may not read all of names, and that this changes
// nothing.
func (f *workDir) refused(names ...string) {
	f.t.Helper()
	before := stored(f.ctx, f.t, f.c)
	_, err := f.s.Derive(f.ctx, f.d)
	if want := "no permission to read: " + strings.Join(names, ", "); !errors.Is(err, images.ErrUnreadable) || !strings.HasSuffix(err.Error(), want) {
		f.t.Errorf("got %v, want ErrUnreadable that ends with %q", err, want)
	}
	sameStore(f.ctx, f.t, f.c, before, 5*time.Second)
}

// TestDeriveCaller: the directory is read with the caller's rights. In the control,
// the same directory is read by root.
func TestDeriveCaller(t *testing.T) {
	f := newCallerDir(t)
	must(t, f.s.Unpack(f.ctx, f.d.Base))
	f.writeAs("own", callerID, callerGroup, 0o600)
	f.writeAs("group", 0, projectGroup, 0o640)
	f.writeAs("public", 0, 0, 0o644)
	f.derive()
	readable := len(f.listing())
	f.writeAs("victim", 0, 0, 0o600)
	f.writeAs("other", 41002, 42003, 0o640)
	f.writeAs("private/file", callerID, callerGroup, 0o644)
	must(t, os.Chmod(f.path("private"), 0o700))
	f.writeAs("listed/file", callerID, callerGroup, 0o644)
	must(t, os.Chmod(f.path("listed"), 0o744))
	f.refused("listed", "other", "private", "victim")

	f.write(".bottleignore", "listed\nother\nprivate\nvictim\n", 0o644)
	f.derive()
	if n := len(f.listing()); n != readable+1 {
		t.Errorf("with the unreadable files excluded, there are %d entries: %q", n, f.listing())
	}
	must(t, os.Chmod(f.path(".bottleignore"), 0o600))
	f.refused(".bottleignore")
	must(t, os.Remove(f.path(".bottleignore")))
	f.write(".dockerignore", "listed\nother\nprivate\nvictim\n", 0o600)
	f.refused(".dockerignore")
	must(t, os.Remove(f.path(".dockerignore")))

	f.d.Caller = asuser.User{}
	f.derive()
	f.inside(func(root string) {
		for _, name := range []string{"own", "group", "public", "victim", "other", "private/file", "listed/file"} {
			if data, err := os.ReadFile(filepath.Join(root, f.d.Target, name)); err != nil || string(data) != name {
				t.Errorf("control: %s contains %q, %v", name, data, err)
			}
		}
	})
	// The image that root has made must not be used again for the caller.
	f.settle()
	f.derive()
	f.d.Caller = caller
	f.refused("listed", "other", "private", "victim")
}

// TestDeriveUnreadable abbreviates a long list, and reports an unreadable directory.
func TestDeriveUnreadable(t *testing.T) {
	f := newCallerDir(t)
	must(t, f.s.Unpack(f.ctx, f.d.Base))
	for i := range 8 {
		f.writeAs(fmt.Sprint(i), 0, 0, 0o600)
	}
	f.refused("0", "1", "2", "3", "4 and 3 more")
	must(t, os.Chown(f.d.Dir, 0, 0))
	must(t, os.Chmod(f.d.Dir, 0o700))
	f.refused(f.d.Dir)
}

// TestDeriveReplacedByVictim: after the scan a file is replaced by one that the caller
// may not read, by each way to do so. In the control root reads it.
func TestDeriveReplacedByVictim(t *testing.T) {
	for name, replace := range map[string]func(f *workDir, victim string) error{
		"rename":      func(f *workDir, victim string) error { return os.Rename(victim, f.path("file")) },
		"permissions": func(f *workDir, _ string) error { return os.Chown(f.path("file"), 0, 0) },
		"parent": func(f *workDir, _ string) error {
			return errors.Join(os.Rename(f.path("dir"), f.path("old")), os.Rename(f.path("../victims"), f.path("dir")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newCallerDir(t)
			must(t, f.s.Unpack(f.ctx, f.d.Base))
			for _, control := range []bool{false, true} {
				if control {
					f.d.Caller = asuser.User{}
				}
				for _, dir := range []string{"dir", "old", "../victims"} {
					must(t, os.RemoveAll(f.path(dir)))
				}
				f.writeAs("file", callerID, callerGroup, 0o600)
				f.writeAs("dir/file", callerID, callerGroup, 0o644)
				victim := "../victims/file"
				f.write(victim, "the victim's", 0o600)
				f.d.Owner = func(context.Context) (int, int, error) { // called between scan and packing
					return 0, 0, replace(f, f.path(victim))
				}
				_, err := f.s.Derive(f.ctx, f.d)
				if !control && !errors.Is(err, images.ErrUnreadable) {
					t.Errorf("got %v, want ErrUnreadable", err)
				}
				if control && err != nil {
					t.Errorf("control: %v", err)
				}
			}
		})
	}
}

// TestDeriveIgnoreLink: an ignore file may be a link to a file in the directory. Any
// other link is an error: without its patterns, files would be included that should
// not be.
func TestDeriveIgnoreLink(t *testing.T) {
	f := newWorkDir(t)
	f.write("kept", "", 0o644)
	f.write("secret", "", 0o600)
	f.write("config/ignore", "secret\n", 0o644)
	f.write("../outside", "secret\n", 0o644)
	must(t, os.Symlink("ignore", f.path("config/second")))
	must(t, os.Symlink("config", f.path("linked")))
	must(t, unix.Mkfifo(f.path("fifo"), 0o600))
	for target, says := range map[string]string{
		"config/ignore": "", "config/second": "", "linked/second": "", "./config/../config/ignore": "", "../work/config/ignore": "", f.path("config/ignore"): "",
		"../outside": `.bottleignore links to "../outside", outside the directory`, f.path("../outside"): "outside the directory", "/etc/passwd": "outside the directory",
		"missing": "no such file", ".bottleignore": "too many links", "config": "not a regular file", "fifo": "not a regular file", "/dev/zero": "outside the directory",
	} {
		for _, ignore := range []string{".bottleignore", ".dockerignore"} {
			must(t, os.Symlink(target, f.path(ignore)))
			_, err := f.s.Derive(f.ctx, f.d)
			switch want := strings.ReplaceAll(says, ".bottleignore", ignore); {
			case target == ".bottleignore" && ignore == ".dockerignore":
				if err == nil || !strings.Contains(err.Error(), "no such file") {
					t.Errorf("%s -> %s: %v", ignore, target, err)
				}
			case says == "" && err != nil, says != "" && (err == nil || !strings.Contains(err.Error(), want)):
				t.Errorf("%s -> %s: %v, want %q", ignore, target, err, want)
			case says == "":
				for _, line := range f.listing() {
					if strings.Contains(line, "secret") {
						t.Errorf("%s -> %s does not exclude the file", ignore, target)
					}
				}
			}
			must(t, os.Remove(f.path(ignore)))
		}
	}
	f.write(".dockerignore", "secret\n"+strings.Repeat("#\n", 1<<20), 0o644)
	if _, err := f.s.Derive(f.ctx, f.d); err == nil || !strings.Contains(err.Error(), "larger than 1 MiB") {
		t.Errorf("too large: %v", err)
	}
}
