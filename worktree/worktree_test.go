package worktree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/filetree"
)

// asProgram makes the test binary the program that bottles have.
const asProgram = "BOTTLE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		os.Exit(filetree.Command(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// local runs a bottle's commands as processes of this host.
type local struct{ env []string }

func (l local) Run(ctx context.Context, c Command) (int, error) {
	args := c.Args
	env := append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}, l.env...)
	if args[0] == Program {
		args = append([]string{os.Args[0]}, args[1:]...)
		env = append(env, asProgram+"=1")
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, c.Stdin, c.Stdout, c.Stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// fixture is a user with a home directory, and a bottle.
type fixture struct {
	*testing.T
	dir    string // of the user's work
	target string // of the copy
	caller caller.Caller
	noted  []string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{T: t, dir: filepath.Join(base, "user"), target: filepath.Join(base, "bottle")}
	home := filepath.Join(base, "home")
	for _, d := range []string{f.dir, f.target, home} {
		f.must(os.Mkdir(d, 0o755))
	}
	f.must(os.WriteFile(filepath.Join(home, ".gitconfig"), []byte("[user]\n\tname = Ada\n\temail = ada@example.test\n[init]\n\tdefaultBranch = main\n[protocol \"file\"]\n\tallow = always\n"), 0o644))
	f.caller = caller.Caller{Home: home, UID: os.Getuid(), GID: os.Getgid(), WorkDir: f.dir, Getenv: func(string) (string, bool) { return "", false }}
	return f
}

func (f *fixture) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) write(dir, name, text string) {
	f.Helper()
	path := filepath.Join(dir, name)
	f.must(os.MkdirAll(filepath.Dir(path), 0o755))
	f.must(os.WriteFile(path, []byte(text), 0o644))
}

// git runs git as the user and returns its trimmed output.
func (f *fixture) git(dir string, args ...string) string {
	f.Helper()
	out, err := f.tryGit(dir, args...)
	if err != nil {
		f.Fatalf("git %v in %s: %v\n%s", args, dir, err, out)
	}
	return out
}

func (f *fixture) tryGit(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + f.caller.Home, "LC_ALL=C", "GIT_TERMINAL_PROMPT=0"}
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// commit creates a repository with a history of two commits.
func (f *fixture) commit(dir string, files map[string]string) {
	f.Helper()
	f.must(os.MkdirAll(dir, 0o755))
	f.git(dir, "init", "--quiet")
	f.git(dir, "commit", "--quiet", "--allow-empty", "-m", "first")
	for name, text := range files {
		f.write(dir, name, text)
	}
	f.git(dir, "add", "-A")
	f.git(dir, "commit", "--quiet", "-m", "second")
}

// copyIn copies a directory into the bottle.
func (f *fixture) copyIn(dir string, change ...func(*Source)) *Base {
	f.Helper()
	b, err := f.tryCopyIn(dir, change...)
	f.must(err)
	return b
}

func (f *fixture) tryCopyIn(dir string, change ...func(*Source)) (*Base, error) {
	src := Source{Dir: dir, Target: f.target, Caller: f.caller, Notice: func(s string) { f.noted = append(f.noted, s) }}
	for _, c := range change {
		c(&src)
	}
	b, err := Copy(context.Background(), src, f.target, -1, -1)
	if err != nil {
		return nil, err
	}
	// As bottle does between processes.
	state := f.TempDir()
	f.must(b.Save(state))
	b, err = Load(state)
	f.must(err)
	return b, nil
}

func (f *fixture) work(b *Base) *Work {
	return &Work{Base: b, Inside: local{}, Caller: f.caller, Limits: DefaultLimits, Notice: func(s string) { f.noted = append(f.noted, s) }}
}

// tree describes the files below a directory, without .git.
func tree(t *testing.T, dir string, skip ...string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if e.Name() == ".git" {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		for _, s := range skip {
			if rel == s {
				if e.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%q %s", rel, fi.Mode())
		switch {
		case fi.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", data)
		case fi.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + to
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func same(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func contains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s lacks %q:\n%s", what, p, text)
		}
	}
}
