package bottle

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/worktree"
)

// userGit runs git on the host and returns its output.
func userGit(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", append([]string{"-c", "user.name=Ada", "-c", "user.email=ada@example.test", "-c", "init.defaultBranch=main"}, args...)...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// agentWork commits, edits, adds and deletes in the working directory.
const agentWork = `set -e
[ "$(cat file)" = modified ] && [ -e untracked ] && ! [ -e ignored.o ]
echo committed >new && mkdir -p deep/er && printf 'a\0b' >deep/er/binary
! git rev-parse --git-dir >/dev/null 2>&1 || { git add new && git -c user.name=agent -c user.email=a commit -qm agent; }
echo edited >file && rm gone && ln -s file link && echo x >ignored.o`

// ending is a way in which a bottle ends.
type ending struct {
	how string
	end func(t *testing.T, e *Engine, b *Bottle)
}

// ends are the states of bottles that work is brought back from.
func ends() []ending {
	removed := func(t *testing.T, e *Engine, b *Bottle) {
		t.Helper()
		if err := e.Remove(t.Context(), b.Name); err != nil {
			t.Error(err)
		}
	}
	return []ending{
		{"running", func(*testing.T, *Engine, *Bottle) {}},
		{"stopped", func(t *testing.T, _ *Engine, b *Bottle) { remove(t, b) }},
		{"killed", func(t *testing.T, e *Engine, b *Bottle) {
			kill(t, b.agent.PID())
			removed(t, e, b)
		}},
		{"rebooted", func(t *testing.T, e *Engine, b *Bottle) {
			reboot(t, e, b)
			removed(t, e, b)
		}},
	}
}

// TestWork brings an agent's work back from a running bottle, a stopped one, one whose
// sandbox was killed, and one after a reboot, with git and without.
func TestWork(t *testing.T) {
	for _, rt := range runtimes {
		for _, repository := range []bool{true, false} {
			for _, end := range ends() {
				name := rt + "/" + map[bool]string{true: "git", false: "plain"}[repository] + "/" + end.how
				t.Run(name, func(t *testing.T) {
					leakcheck.Check(t)
					e := openEngine(t)
					removeSockets := shimSockets(t)
					defer removeSockets()
					testWork(t, e, rt, repository, end.end)
				})
			}
		}
	}
}

func testWork(t *testing.T, e *Engine, rt string, repository bool, end func(*testing.T, *Engine, *Bottle)) {
	s := workSpec(t, e, rt, "")
	dir := s.Caller.WorkDir
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	write("file", "original\n")
	write("gone", "gone\n")
	if repository {
		write(".gitignore", "*.o\n")
		userGit(t, dir, "init", "-q")
		userGit(t, dir, "add", "-A")
		userGit(t, dir, "commit", "-qm", "first")
		write("ignored.o", "object\n")
	}
	write("file", "modified\n")
	write("untracked", "untracked\n")
	b := launchWork(t, e, s)
	in(t, e, b.Name, agentWork)
	end(t, e, b)

	o := agentwork.Options{Caller: s.Caller, Limits: agentwork.DefaultLimits}
	sum, err := e.work.Summarize(t.Context(), b.Name, o)
	want := agentwork.Summary{Files: 7} // deep, deep/er, its file, file, gone, link, new
	if repository {
		want.Commits = 1
	} else {
		want.Files++ // nothing is ignored
	}
	if err != nil || sum != want {
		t.Errorf("summary %+v, %v, want %+v", sum, err, want)
	}
	var diff bytes.Buffer
	if err := e.work.Diff(t.Context(), b.Name, &diff, false, o); err != nil || !strings.Contains(diff.String(), "-modified\n+edited\n") {
		t.Errorf("diff: %v\n%s", err, &diff)
	}
	if repository {
		fetched, err := e.work.Fetch(t.Context(), b.Name, "bottle/it", o)
		if err != nil || len(fetched) != 1 || fetched[0].Commits != 1 || !fetched[0].Uncommitted {
			t.Fatalf("fetch: %+v, %v", fetched, err)
		}
		if got := userGit(t, dir, "log", "--format=%s", "bottle/it"); got != "Uncommitted work\nagent\nfirst" {
			t.Errorf("the branch has %q", got)
		}
		if got := userGit(t, dir, "show", "bottle/it:file"); got != "edited" {
			t.Errorf("the branch's file: %q", got)
		}
	} else if _, err := e.work.Fetch(t.Context(), b.Name, "bottle/it", o); !errors.Is(err, worktree.ErrNotGit) {
		t.Errorf("fetch without git: %v", err)
	}
	if changes, err := e.work.Apply(t.Context(), b.Name, false, o); err != nil || len(changes) != want.Files {
		t.Errorf("apply: %+v, %v", changes, err)
	}
	for name, want := range map[string]string{"file": "edited\n", "new": "committed\n", "deep/er/binary": "a\x00b", "untracked": "untracked\n"} {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != want {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "gone")); err == nil {
		t.Error("a deleted file is still there")
	}
	out := filepath.Join(t.TempDir(), "copy")
	if err := e.work.CopyOut(t.Context(), b.Name, b.plan.Target+"/deep", out, o); err != nil {
		t.Errorf("copy: %v", err)
	}
	if data, err := os.ReadFile(out + "/er/binary"); err != nil || string(data) != "a\x00b" {
		t.Errorf("copied: %q, %v", data, err)
	}
	if k := kept(t, e, b.Name); k.Bottle == agentwork.NoBottle && k.Unfetched {
		t.Errorf("the work counts as not fetched: %+v", k)
	}
}

// partOfSaves is how many cases of TestKilledWhileSaving `make test` runs for each runtime.
const partOfSaves = 4

// TestKilledWhileSaving kills `bottle run` at every step of the removal that follows a
// session: the agent's work is kept, complete, and comes back.
func TestKilledWhileSaving(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	s := workSpec(t, e, plan.Runsc, "")
	points := removalSteps(t, e, prepare(t, e, s))
	if err := discard(e, "claude-bottle-it"); err != nil {
		t.Fatal(err)
	}
	seed, err := strconv.ParseUint(os.Getenv(faultSeedEnv), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("%s=%d", faultSeedEnv, seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for _, rt := range runtimes {
		random.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		run := points
		if os.Getenv(faultsEnv) != "all" {
			run = points[:partOfSaves]
		}
		for _, point := range run {
			f := fault{Victim: "bottle run", Step: point, Moment: momentBefore, Runtime: rt, Dir: filepath.Dir(s.ManifestPath), Work: s.Caller.WorkDir}
			if random.IntN(2) == 0 {
				f.Moment, f.After = momentDuring, time.Duration(random.Int64N(int64(50*time.Millisecond)))
			}
			t.Run(f.String(), func(t *testing.T) {
				leakcheck.Check(t)
				f.happen(t, e)
				if k := kept(t, e, "claude-bottle-it"); !k.Changed || !k.Unfetched || k.Bottle != agentwork.NoBottle {
					t.Errorf("%+v", k)
				}
				o := agentwork.Options{Caller: s.Caller, Limits: agentwork.DefaultLimits}
				if changes, err := e.work.Apply(t.Context(), "claude-bottle-it", false, o); err != nil || len(changes) != 1 {
					t.Errorf("apply: %v, %v", changes, err)
				}
				file := filepath.Join(s.Caller.WorkDir, "new")
				if data, err := os.ReadFile(file); string(data) != "saved\n" || err != nil {
					t.Errorf("the user's file: %q, %v", data, err)
				}
				if err := errors.Join(os.Remove(file), discard(e, "claude-bottle-it")); err != nil {
					t.Error(err)
				}
			})
		}
	}
}
