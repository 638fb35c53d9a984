package plan

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/provision"

	"github.com/bot-bottle/bottle/manifest"
)

func TestPromptOption(t *testing.T) {
	for name, c := range map[string]struct {
		agent string
		args  []string
		want  string
	}{
		"claude":           {"command: [claude, -c], prompt: x", []string{"--", "hi"}, "claude --append-system-prompt-file /.bottle/prompt -c -- hi"},
		"claude by path":   {"command: [/opt/claude], prompt: x", nil, "/opt/claude --append-system-prompt-file /.bottle/prompt"},
		"the image's":      {"prompt: x", nil, "claude --append-system-prompt-file /.bottle/prompt"},
		"another":          {"command: [codex], prompt: x", nil, "codex"},
		"no prompt":        {"command: [claude]", nil, "claude"},
		"empty prompt":     {`command: [claude], prompt: ""`, nil, "claude"},
		"its own, no ours": {"command: [claude]", []string{"--append-system-prompt", "x"}, "claude --append-system-prompt x"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, "", c.agent)
			s.spec.Args = c.args
			if got := strings.Join(s.good().Command, " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
	s := newScene(t, "", "command: [claude], prompt: x")
	for _, arg := range []string{"--append-system-prompt", "--append-system-prompt-file=/x"} {
		s.spec.Args = []string{arg}
		s.bad(`agent "impl": the prompt conflicts with the option --append-system-prompt`, "remove the prompt")
	}
}

func TestSkillFiles(t *testing.T) {
	s := newScene(t, "", "skills: [review, review]")
	const dir = "home/.claude/skills/review/"
	s.write(dir+"SKILL.md", "text", 0o600)
	s.write(dir+"bin/run", "script", 0o755)
	s.write(dir+".git/config", "token", 0o644)
	for link, to := range map[string]string{"within.md": "bin/../SKILL.md", "linked": "bin"} {
		if err := os.Symlink(to, s.path(dir+link)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]string{}
	plan := s.good()
	for _, f := range plan.skills {
		got[f.Path+" "+f.Mode.String()] = string(f.Data)
	}
	want := map[string]string{
		"review drwxr-xr-x": "", "review/SKILL.md -rw-r--r--": "text", "review/bin drwxr-xr-x": "",
		"review/bin/run -rwxr-xr-x": "script", "review/within.md -rw-r--r--": "text",
		"review/linked drwxr-xr-x": "", "review/linked/run -rwxr-xr-x": "script",
	}
	if !reflect.DeepEqual(got, want) || !slices.Equal(plan.Skills, []string{"review"}) || len(plan.Warnings) != 0 {
		t.Errorf("got %v of %v, warnings %q", got, plan.Skills, plan.Warnings)
	}
	if err := os.Rename(s.path(dir+"SKILL.md"), s.path(dir+"README.md")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.path(dir + "within.md")); err != nil {
		t.Fatal(err)
	}
	if w := s.good().Warnings; len(w) != 1 || !strings.HasPrefix(w[0], "skill 'review' has no SKILL.md in "+s.path(dir[:len(dir)-1])) {
		t.Errorf("without a SKILL.md: warnings %q", w)
	}
}

// TestSkillElsewhere checks that a skill may be a link to another directory of the user.
func TestSkillElsewhere(t *testing.T) {
	s := newScene(t, "", "skills: [review]")
	s.write("elsewhere/SKILL.md", "text", 0o644)
	if err := os.Symlink(s.path("elsewhere"), s.path("home/.claude/skills/review")); err != nil {
		t.Fatal(err)
	}
	if got := s.good().skills; len(got) != 2 || got[1].Path != "review/SKILL.md" {
		t.Errorf("got %v", got)
	}
}

func TestSkillErrors(t *testing.T) {
	link := func(to string) func(*scene, string) error {
		return func(s *scene, at string) error { return os.Symlink(to, at) }
	}
	for name, c := range map[string]struct {
		make func(s *scene, at string) error
		want string
	}{
		"a link that leads out":        {link("../../../secret"), "leads out of the skill"},
		"an absolute link":             {link("/etc/hostname"), "leads out of the skill"},
		"a link to nothing":            {link("nothing"), "no such file"},
		"a link to itself":             {link("x"), "too many levels"},
		"a link to a parent directory": {link("."), "too many levels"},
		"a FIFO":                       {func(_ *scene, at string) error { return syscall.Mkfifo(at, 0o644) }, "not a regular file"},
		"a large file":                 {func(_ *scene, at string) error { return os.WriteFile(at, make([]byte, (16<<20)+1), 0o644) }, "larger than 16MiB"},
		"what its user cannot read":    {unreadable4242, "not readable by you"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, "", "skills: [review]")
			s.write("home/secret", "hunter2", 0o644)
			s.mkdir("home/.claude/skills/review")
			if err := c.make(s, s.path("home/.claude/skills/review/x")); err != nil {
				t.Fatal(err)
			}
			s.bad("skill 'review'", c.want)
		})
	}
}

func unreadable4242(s *scene, at string) error {
	s.spec.Caller.UID, s.spec.Caller.GID = 4242, 4242
	return os.WriteFile(at, []byte("text"), 0)
}

func TestSkillCount(t *testing.T) {
	s := newScene(t, "", "skills: [review]")
	s.mkdir("home/.claude/skills/review")
	for i := range 1000 {
		s.write("home/.claude/skills/review/"+strings.Repeat("x", 1+i%200)+"/"+string(rune('a'+i/200)), "", 0o644)
	}
	s.bad("more than 1000 files")
}

func TestGitIdentity(t *testing.T) {
	s := newScene(t, "", "")
	if got := s.good().Git; got != nil {
		t.Errorf("without a configuration: %+v", got)
	}
	s.write("home/.gitconfig", "[user]\n\tname = Home\n\temail = home@example.test\n[include]\n\tpath = more\n", 0o644)
	s.write("home/more", "[user]\n\tname = Included\n", 0o644)
	if got := s.good().Git; got == nil || *got != (manifest.Git{Name: "Included", Email: "home@example.test"}) {
		t.Errorf("with the user's configuration: %+v", got)
	}
	s.write("home/.gitconfig", "[user\n", 0o644)
	if w := s.good().Warnings; len(w) != 1 || !strings.Contains(w[0], "git has no identity") {
		t.Errorf("a broken configuration: %q", w)
	}
	s = newScene(t, "git: {email: manifest@example.test}", "")
	s.write("home/xdg/git/config", "[user]\n\tname = X\n\temail = x@example.test\n", 0o644)
	s.env["XDG_CONFIG_HOME"] = s.path("home/xdg")
	if got := s.good().Git; got == nil || *got != (manifest.Git{Name: "X", Email: "manifest@example.test"}) {
		t.Errorf("the manifest does not override it: %+v", got)
	}
}

// TestGitIdentityOfAnother checks that git runs as the invoking user, who is not root:
// configuration that only root can read has no effect.
func TestGitIdentityOfAnother(t *testing.T) {
	home, err := os.MkdirTemp("", "bottle-home-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	const uid = 4242
	work := filepath.Join(home, "work")
	for name, text := range map[string]string{
		".gitconfig": "[user]\n\tname = Mine\n\temail = mine@example.test\n[includeIf \"gitdir:" + work + "/\"]\n\tpath = " + home + "/more\n",
		"more":       "[user]\n\temail = work@example.test\n",
	} {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("git", "init", "-q", work).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	give := func(uid int) {
		t.Helper()
		err := filepath.WalkDir(home, func(p string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Lchown(p, uid, uid)) })
		if err != nil {
			t.Fatal(err)
		}
	}
	give(uid)
	s := newScene(t, "", "")
	s.spec.Caller.Home, s.spec.Caller.UID, s.spec.Caller.GID = home, uid, uid
	identity := func(dir string) manifest.Git {
		t.Helper()
		s.spec.Caller.WorkDir = dir
		g, err := provision.GitIdentity(t.Context(), s.spec.Caller)
		if err != nil {
			t.Error(err)
		}
		return g
	}
	if got := identity(work); got != (manifest.Git{Name: "Mine", Email: "work@example.test"}) {
		t.Errorf("in the repository: %+v", got)
	}
	// A directory that the user cannot enter, here root's.
	if got := identity(t.TempDir()); got != (manifest.Git{Name: "Mine", Email: "mine@example.test"}) {
		t.Errorf("in root's directory: %+v", got)
	}
	// A file that only a supplementary group may read is included.
	if err := errors.Join(os.Chown(filepath.Join(home, "more"), 0, 4343), os.Chmod(filepath.Join(home, "more"), 0o640)); err != nil {
		t.Fatal(err)
	}
	s.spec.Caller.Groups = []int{4343}
	if got := identity(work); got.Email != "work@example.test" {
		t.Errorf("with a supplementary group: %+v", got)
	}
	s.spec.Caller.Groups = nil
	if g, err := provision.GitIdentity(t.Context(), s.spec.Caller); err == nil || g.Email == "work@example.test" {
		t.Errorf("control: without the group: %+v, %v", g, err)
	}
	give(0)
	if g, err := provision.GitIdentity(t.Context(), s.spec.Caller); g != (manifest.Git{}) {
		t.Errorf("with a home of root: %+v, %v", g, err)
	}
}
