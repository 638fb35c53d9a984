package provision

import (
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
)

// testAgent has a literal and a secret variable, a prompt and a skill.
func testAgent(more ...Variable) Agent {
	return Agent{
		Hostname: "impl",
		Prompt:   "be brief",
		Skills:   []rootfile.File{{Path: "review/SKILL.md", Mode: 0o644, Data: []byte("review")}},
		Variables: append([]Variable{
			{Name: "LEVEL", Source: manifest.SourceLiteral, Literal: "debug"},
			{Name: "TOKEN", Source: manifest.SourceForwarded, Secret: secret.New("s3cret")},
		}, more...),
	}
}

// TestSecretsOnlyInEnvFile checks that the values of secret variables are in the guest's
// environment file, which is private and on tmpfs, and in no other file and not in the
// stored environment.
func TestSecretsOnlyInEnvFile(t *testing.T) {
	a, img := testAgent(), Image{Home: "/home/x", WorkDir: "/workspace", UID: 1000}
	for _, f := range a.GuestFiles(img) {
		isEnv := f.Name == "env"
		if strings.Contains(string(f.Data), "s3cret") != isEnv {
			t.Errorf("%s: %q", f.Name, f.Data)
		}
		if isEnv && (string(f.Data) != "TOKEN=s3cret\x00" || f.Mode != 0o400 || !f.Private) {
			t.Errorf("environment file %q, mode %o, private %v", f.Data, f.Mode, f.Private)
		}
		if f.Name == "prompt" && (string(f.Data) != "be brief" || !f.Private) {
			t.Errorf("prompt %q, private %v", f.Data, f.Private)
		}
	}
	for _, f := range a.RootFiles(img) {
		data := f.Data
		if f.Edit != nil {
			var err error
			if data, err = f.Edit(nil); err != nil {
				t.Fatalf("%s: %v", f.Path, err)
			}
		}
		if strings.Contains(string(data), "s3cret") {
			t.Errorf("%s contains the secret", f.Path)
		}
	}
	env := a.Environ(img)
	if !slices.Contains(env, "LEVEL=debug") || strings.Contains(strings.Join(env, "\n"), "TOKEN") {
		t.Errorf("stored environment %q", env)
	}
	if got, want := string(EnvFile(a.Variables)), "LEVEL=debug\x00TOKEN=s3cret\x00"; got != want {
		t.Errorf("EnvFile: got %q, want %q", got, want)
	}
}

// TestHomeOfAgent checks where Claude Code's files and the skills are placed: in the home
// of the image, unless the manifest or the image sets HOME or CLAUDE_CONFIG_DIR to an
// absolute path. ssh ignores both and uses the home in the passwd file.
func TestHomeOfAgent(t *testing.T) {
	literal := func(name, value string) Variable {
		return Variable{Name: name, Source: manifest.SourceLiteral, Literal: value}
	}
	for name, c := range map[string]struct {
		variables []Variable
		env       []string // of the image
		want      []string
	}{
		"image's home":       {nil, nil, []string{"/home/x/.claude.json", "/home/x/.claude/settings.json", "/home/x/.claude/skills/review/SKILL.md", "/home/x/.gitconfig"}},
		"HOME":               {[]Variable{literal("HOME", "/h")}, []string{"HOME=/i"}, []string{"/h/.claude.json", "/h/.claude/skills/review/SKILL.md", "/h/.gitconfig"}},
		"HOME of the image":  {nil, []string{"HOME=/i"}, []string{"/i/.claude.json", "/i/.gitconfig"}},
		"relative HOME":      {[]Variable{literal("HOME", "h")}, []string{"HOME=/i"}, []string{"/home/x/.claude.json"}},
		"CLAUDE_CONFIG_DIR":  {[]Variable{literal("CLAUDE_CONFIG_DIR", "/c")}, nil, []string{"/c/.claude.json", "/c/settings.json", "/c/skills/review/SKILL.md", "/home/x/.gitconfig"}},
		"secret HOME":        {[]Variable{{Name: "HOME", Source: manifest.SourceForwarded, Secret: secret.New("/s")}}, nil, []string{"/home/x/.claude.json"}},
		"ssh uses passwd(5)": {[]Variable{literal("HOME", "/h")}, nil, []string{"/home/passwd/.ssh", "/home/passwd/.ssh/config"}},
	} {
		t.Run(name, func(t *testing.T) {
			img := Image{Home: "/home/x", UserHome: "/home/passwd", WorkDir: "/workspace", UID: 1000, Env: c.env}
			a := testAgent(c.variables...)
			a.Git = &manifest.Git{Name: "A"}
			var paths []string
			for _, f := range a.RootFiles(img) {
				paths = append(paths, f.Path)
			}
			for _, want := range c.want {
				if !slices.Contains(paths, want) {
					t.Errorf("missing %s in %q", want, paths)
				}
			}
		})
	}
}

// TestClaudeEnvironment checks the defaults for Claude Code and that image and manifest
// override them.
func TestClaudeEnvironment(t *testing.T) {
	has := func(uid uint32, entry string, env []string, variables ...Variable) bool {
		return slices.Contains(testAgent(variables...).Environ(Image{UID: uid, Env: env}), entry)
	}
	if !has(0, "IS_SANDBOX=1", nil) || has(1000, "IS_SANDBOX=1", nil) {
		t.Error("IS_SANDBOX must be set for root only")
	}
	if !has(1000, "DISABLE_AUTOUPDATER=1", nil) || has(1000, "DISABLE_AUTOUPDATER=1", []string{"DISABLE_AUTOUPDATER=0"}) {
		t.Error("the image's variable must override the default")
	}
	zero := Variable{Name: "DISABLE_AUTOUPDATER", Source: manifest.SourceLiteral, Literal: "0"}
	if has(1000, "DISABLE_AUTOUPDATER=1", nil, zero) || !has(1000, "DISABLE_AUTOUPDATER=0", nil, zero) {
		t.Error("the manifest's variable must override the default")
	}
}
