package provision

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

// TestGitConfig reads the configuration with git.
func TestGitConfig(t *testing.T) {
	want := manifest.Git{Name: "A \"Quoted\" \\ Pers;on #1\nbelow", Email: " sp@ce.test "}
	for name, old := range map[string]string{
		"none": "", "the image's": "[user]\n\tname = Image\n[alias]\n\tst = status", "continued": "[a]\nb = \"c\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			file := gitFiles("/home/x", &want)[0]
			if file.Path != "/home/x/.gitconfig" {
				t.Errorf("path %s", file.Path)
			}
			data, err := file.Edit([]byte(old))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "config")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			for key, value := range map[string]string{"user.name": want.Name, "user.email": want.Email, "safe.directory": "*"} {
				out, err := exec.Command("git", "config", "--file", path, "--null", "--get", key).Output()
				if err != nil || string(out) != value+"\x00" {
					t.Errorf("%s: %q, %v", key, out, err)
				}
			}
			if err := exec.Command("git", "config", "--file", path, "--get", "alias.st").Run(); (err == nil) != strings.Contains(old, "alias") {
				t.Errorf("alias of the image: %v", err)
			}
		})
	}
}

func TestClaudeFiles(t *testing.T) {
	files := Agent{}.kindFiles(Image{WorkDir: "/workspace"}, "/home/x")
	if files[0].Path != "/home/x/.claude.json" || files[1].Path != "/home/x/.claude/settings.json" {
		t.Errorf("paths %s and %s", files[0].Path, files[1].Path)
	}
	for name, c := range map[string]struct {
		file      int
		old, want string
	}{
		"no state":       {0, "", `{"hasCompletedOnboarding":true,"projects":{"/workspace":{"hasTrustDialogAccepted":true}}}`},
		"a state":        {0, `{"big":12345678901234567890,"hasCompletedOnboarding":false,"projects":{"/workspace":{"history":[1]},"/x":{}}}`, `{"big":12345678901234567890,"hasCompletedOnboarding":true,"projects":{"/workspace":{"history":[1],"hasTrustDialogAccepted":true},"/x":{}}}`},
		"null":           {0, "null", `{"hasCompletedOnboarding":true,"projects":{"/workspace":{"hasTrustDialogAccepted":true}}}`},
		"no settings":    {1, "\n", `{"skipDangerousModePermissionPrompt":true}`},
		"settings":       {1, `{"model":"x"}`, `{"model":"x","skipDangerousModePermissionPrompt":true}`},
		"settings as is": {1, `{"skipDangerousModePermissionPrompt":false}`, `{"skipDangerousModePermissionPrompt":false}`},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := files[c.file].Edit([]byte(c.old))
			if err != nil {
				t.Fatal(err)
			}
			var got, want any
			if err := json.Unmarshal(data, &got); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal([]byte(c.want), &want); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) || strings.Contains(c.old, "1234567890") && !strings.Contains(string(data), "12345678901234567890") {
				t.Errorf("got %s", data)
			}
		})
	}
	for _, bad := range []string{"[]", "{", `{"projects":[]}`, "text"} {
		if data, err := files[0].Edit([]byte(bad)); err == nil || hint.Of(err) == "" {
			t.Errorf("%s: %s, %v", bad, data, err)
		}
	}
}
