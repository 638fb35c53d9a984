package bottle

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/worktree"
)

// armRepository gives the repository in the working directory everything that makes git
// start a program: it would create the file $MARK.
const armRepository = `set -e
printf '#!/bin/sh\ntouch %s\ncat\n' "$MARK" >evil.sh; chmod 755 evil.sh
git config core.fsmonitor "touch $MARK; false"; git config core.hooksPath .git/hooks; git config diff.external "touch $MARK;"
git config filter.evil.clean "touch $MARK; cat"; git config filter.evil.smudge "touch $MARK; cat"; git config core.sshCommand "touch $MARK;"
git config protocol.ext.allow always; git config alias.status "!touch $MARK"; git config uploadpack.packObjectsHook "touch $MARK;"
for hook in post-checkout post-merge reference-transaction pre-commit post-index-change update proc-receive; do
  mkdir -p .git/hooks; cp evil.sh .git/hooks/$hook
done
printf '* filter=evil diff=evil merge=evil\n' >.gitattributes
printf '[submodule "x"]\n\tpath = x\n\turl = ext::touch %s\n' "$MARK" >.gitmodules
`

// leadOut makes links that lead out, special files, and names that terminals and file
// systems could take for something else.
const leadOut = `
ln -s /etc/shadow shadow; ln -s ../../../../../../../../etc up; rm -rf dir; ln -s "$OUTSIDE" dir
mkdir -p .GIT/hooks sub/.Git; cp evil.sh .GIT/hooks/post-checkout; echo x >sub/.Git/config
echo x >"$(printf 'new\nline')"; echo x >"$(printf 'esc\033[2Jape')"; mkfifo pipe; truncate -s 107374182400 sparse
`

// TestHostileWork brings the work of a hostile agent back, from its running bottle and
// after the end: nothing of it runs on the host, nothing but the branch changes, and time
// and bytes are bounded. In the control git itself starts the agent's program.
func TestHostileWork(t *testing.T) {
	for _, rt := range runtimes {
		t.Run(rt, func(t *testing.T) {
			leakcheck.Check(t)
			e := openEngine(t)
			s := workSpec(t, e, rt, "")
			dir, outside := s.Caller.WorkDir, t.TempDir()
			mark := filepath.Join(t.TempDir(), "mark")
			script := func(dir, text string) {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), "sh", "-c", text)
				cmd.Dir, cmd.Env = dir, append(os.Environ(), "MARK="+mark)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			script(dir, "rm -rf * && mkdir dir && echo mine >dir/file && echo original >file")
			userGit(t, dir, "init", "-q")
			userGit(t, dir, "add", "-A")
			userGit(t, dir, "commit", "-qm", "first")
			if err := os.WriteFile(filepath.Join(outside, "file"), []byte("outside\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			config, err := os.ReadFile(filepath.Join(dir, ".git/config"))
			if err != nil {
				t.Fatal(err)
			}
			before := listing(t, filepath.Dir(dir)) + listing(t, outside)
			check := func(what string) {
				t.Helper()
				if _, err := os.Lstat(mark); err == nil {
					t.Errorf("%s: a program of the agent's was started", what)
				}
				if now := listing(t, filepath.Dir(dir)) + listing(t, outside); now != before {
					t.Errorf("%s: files changed:\n%s\nwant:\n%s", what, now, before)
				}
				if now, err := os.ReadFile(filepath.Join(dir, ".git/config")); err != nil || string(now) != string(config) {
					t.Errorf("%s: git's configuration: %v\n%s", what, err, now)
				}
			}

			b := launchWork(t, e, s)
			in(t, e, b.Name, "git config user.name agent; git config user.email a; echo committed >file; git commit -qam agent; MARK="+mark+" OUTSIDE="+outside+"\n"+armRepository+leadOut)
			o := agentwork.Options{Caller: s.Caller, Limits: agentwork.DefaultLimits}
			o.Limits.Bytes, o.Limits.Time = 64<<20, 30*time.Second
			bringBack := func(state string) {
				t.Helper()
				for what, try := range map[string]func() error{
					"apply": func() error { _, err := e.work.Apply(t.Context(), b.Name, false, o); return err },
					"diff":  func() error { return e.work.Diff(t.Context(), b.Name, io.Discard, false, o) },
					"copy":  func() error { return e.work.CopyOut(t.Context(), b.Name, b.plan.Target, t.TempDir()+"/copy", o) },
				} {
					err := try()
					if !errors.Is(err, worktree.ErrTooLarge) && !errors.Is(err, worktree.ErrRefused) && !errors.Is(err, worktree.ErrTimeout) {
						t.Errorf("%s, %s: %v", state, what, err)
					}
					check(state + ", " + what)
				}
			}
			bringBack("running")
			in(t, e, b.Name, "rm sparse")
			// Without the large file, only what leads out is refused.
			if _, err := e.work.Apply(t.Context(), b.Name, false, o); !errors.Is(err, worktree.ErrRefused) {
				t.Errorf("apply: %v", err)
			}
			check("apply")
			in(t, e, b.Name, "truncate -s 107374182400 sparse")
			remove(t, b)
			bringBack("stopped")

			// What git can check arrives, as data.
			offline(t, e, b.Name, "cd /workspace && rm -rf sparse .GIT sub .gitmodules")
			fetched, err := e.work.Fetch(t.Context(), b.Name, "bottle/it", o)
			if err != nil || len(fetched) != 1 || fetched[0].Commits != 1 || !fetched[0].Uncommitted {
				t.Errorf("fetch: %+v, %v", fetched, err)
			}
			check("fetch")
			if got := userGit(t, dir, "cat-file", "-p", "bottle/it:shadow"); got != "/etc/shadow" {
				t.Errorf("the branch's link has %q", got)
			}

			script(dir, armRepository+"git diff >/dev/null; git commit -qam control || true")
			if _, err := os.Lstat(mark); err != nil {
				t.Errorf("control: git started no program: %v", err)
			}
			if !strings.Contains(before, "outside") {
				t.Error("the listing has no contents")
			}
		})
	}
}

// TestManyWorkFiles has an agent make more files than one operation may change: a few
// thousand, or a million in the complete run. They are refused with bounded memory, and
// nothing of the user's changes. A fetch may bring them, as objects of git.
func TestManyWorkFiles(t *testing.T) {
	count, limits := 3000, ""
	o := agentwork.Options{Limits: agentwork.DefaultLimits}
	o.Limits.Files = 1000
	if os.Getenv(faultsEnv) == "all" {
		// ext4 has an inode for each 16 KiB.
		count, limits, o.Limits = 1_000_000, "workspace: 30GiB", agentwork.DefaultLimits
	}
	for _, rt := range runtimes {
		t.Run(rt, func(t *testing.T) {
			leakcheck.Check(t)
			e := openEngine(t)
			s := workSpec(t, e, rt, limits)
			dir := s.Caller.WorkDir
			userGit(t, dir, "init", "-q")
			userGit(t, dir, "add", "-A")
			userGit(t, dir, "commit", "-qm", "first")
			o := o
			o.Caller = s.Caller
			b := launchWork(t, e, s)
			in(t, e, b.Name, fmt.Sprintf("i=0; while [ $i -lt %d ]; do mkdir d$i; (cd d$i && seq 1000 | xargs touch); i=$((i+1)); done", count/1000))
			before := listing(t, filepath.Dir(dir))
			bringBack := func(state string) {
				t.Helper()
				out := t.TempDir()
				var old, now runtime.MemStats
				runtime.ReadMemStats(&old)
				for what, try := range map[string]func() error{
					"apply": func() error { _, err := e.work.Apply(t.Context(), b.Name, false, o); return err },
					"diff":  func() error { return e.work.Diff(t.Context(), b.Name, io.Discard, false, o) },
					"copy":  func() error { return e.work.CopyOut(t.Context(), b.Name, b.plan.Target, out+"/copy", o) },
				} {
					start := time.Now()
					if err := try(); !errors.Is(err, worktree.ErrTooLarge) {
						t.Errorf("%s, %s: %v", state, what, err)
					}
					t.Logf("%s, %s: %s", state, what, time.Since(start).Round(time.Millisecond))
				}
				runtime.ReadMemStats(&now)
				if used := now.Sys - old.Sys; used > 1<<30 { // it never shrinks
					t.Errorf("%s: %d MiB of memory", state, used>>20)
				}
				if now := listing(t, filepath.Dir(dir)); now != before {
					t.Errorf("%s: files changed:\n%.2000s\nwant:\n%s", state, now, before)
				}
			}
			bringBack("running")
			remove(t, b)
			bringBack("stopped")
			fetched, err := e.work.Fetch(t.Context(), b.Name, "bottle/it", o)
			if err != nil || len(fetched) != 1 || !fetched[0].Uncommitted {
				t.Errorf("fetch: %+v, %v", fetched, err)
			}
			if got := userGit(t, dir, "ls-tree", "bottle/it", "d0/1000"); !strings.HasPrefix(got, "100644 blob ") {
				t.Errorf("the branch has %q", got)
			}
			if now := listing(t, filepath.Dir(dir)); now != before {
				t.Errorf("fetch: files changed:\n%.2000s\nwant:\n%s", now, before)
			}
		})
	}
}
