package bottle

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// TestNoExec launches with the run directory mounted noexec, as on Debian, and with the
// state directory mounted noexec as well.
func TestNoExec(t *testing.T) {
	leakcheck.Check(t)
	// `make build` and the tests write the guest program next to bottle's program.
	labtest.Program(t)
	guest, err := os.ReadFile(filepath.Join("cmd", "bottle", "embedded", "guest-"+goruntime.GOARCH))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		for _, noexec := range []bool{false, true} {
			t.Run(name+" state noexec "+strconv.FormatBool(noexec), func(t *testing.T) {
				leakcheck.Check(t)
				e := openEngine(t, func(cfg *Config) {
					cfg.Guest = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(guest)), nil }
					if noexec {
						cfg.StateDir = noExecDir(t)
					}
				})
				want := len(guest)
				if noexec {
					info, err := os.Stat(e.cfg.Program)
					if err != nil {
						t.Fatal(err)
					}
					want = int(info.Size())
				}
				s := testSpec(t, simpleManifest)
				s.Runtime = name
				b, err := e.Launch(t.Context(), prepare(t, e, s))
				if err != nil {
					t.Fatal(err)
				}
				defer remove(t, b)
				if !hasMountFlag(t, e.dir(b.Name), unix.ST_NOEXEC) {
					t.Error("invalid test: the run directory is not mounted noexec")
				}
				out, code := output(t, e, b.Name, "wc", "-c", provision.GuestInit)
				if size, _, _ := strings.Cut(out, " "); code != 0 || size != strconv.Itoa(want) {
					t.Errorf("guest program in the sandbox: %q, exit %d; want %d bytes", out, code, want)
				}
				if out, code := output(t, e, b.Name, "sh", "-c", "echo >> "+provision.GuestInit); code == 0 {
					t.Errorf("the agent can write to the guest program: %q", out)
				}
			})
		}
	}
}

// noExecDir returns a directory on a file system mounted noexec.
func noExecDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOEXEC, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func hasMountFlag(t *testing.T, dir string, flag int64) bool {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	return st.Flags&flag != 0
}
