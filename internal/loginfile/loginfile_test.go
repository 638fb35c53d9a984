package loginfile

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

const dockerKey = "https://registry.example/v1/"

// files has one of each format. Every REAL is a secret, also those that are not read.
var files = map[string]string{
	"gh":  "github.com:\n    users:\n        me:\n            oauth_token: REAL-a\n    git_protocol: https\n    oauth_token: REAL-a\n    user: me\nghe.example:\n    oauth_token: REAL-b\nkeyring.example:\n    user: me\n",
	"npm": "registry=https://npm.example/\n; comment\n//npm.example/:_authToken=REAL-a\n//npm.example:8443/own/:_authToken=\"REAL-b\"\n//var.example/:_authToken=${TOKEN}\n//npm.example/:_password=REAL-c\nhttps-proxy=http://me:REAL-d@proxy\n@me:registry=https://npm.example:8443/own/\n",
	"netrc": "machine a.example login me password REAL-a\nmachine b.example\n  login you\n  password REAL-b\n# password REAL-c\nmachine a.example login other password REAL-c\n" +
		"macdef init\npassword REAL-d\n\ndefault login anonymous password REAL-e\n",
	"docker": `{"auths": {"` + dockerKey + `": {"auth": "` + base64.StdEncoding.EncodeToString([]byte("me:REAL-a")) + `"}, "helper.example": {}, "registry.gitlab.com": {"auth": "` +
		base64.StdEncoding.EncodeToString([]byte("you:REAL-b")) + `", "identitytoken": "REAL-c"}}, "HttpHeaders": {"X": "REAL-d"}}`,
	"claude": `{"claudeAiOauth": {"accessToken": "REAL-a", "refreshToken": "REAL-r", "expiresAt": 1, "scopes": ["user:inference"], "subscriptionType": "max"}, "mcpOAuth": {"x": "REAL-m"}}`,
}

// TestFormats: a written file has other values in place of the secrets and no other secret,
// and reads as the original.
func TestFormats(t *testing.T) {
	for name, want := range map[string]string{
		"gh":     "gh:ghe.example REAL-b [ghe.example]; gh:github.com REAL-a [github.com api.github.com uploads.github.com]",
		"npm":    "npm:npm.example REAL-a [npm.example]; npm:npm.example:8443/own REAL-b [npm.example:8443]",
		"netrc":  "netrc:a.example REAL-a [a.example]; netrc:b.example REAL-b [b.example]",
		"docker": "docker:" + dockerKey + " REAL-a [registry.example]; docker:registry.gitlab.com REAL-b [registry.gitlab.com gitlab.com]",
		"claude": "claude:api.anthropic.com REAL-a [api.anthropic.com]",
	} {
		t.Run(name, func(t *testing.T) {
			format, ok := Get(name)
			if !ok {
				t.Fatal("unknown")
			}
			f, err := format.Parse([]byte(files[name]))
			if err != nil {
				t.Fatal(err)
			}
			if got := text(f); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			values := map[string]string{}
			for _, s := range f.Secrets {
				values[s.Name] = strings.Replace(s.Value.Reveal(), "REAL", "FAKE", 1)
			}
			data, err := f.Write(values)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(data), "REAL") || strings.Contains(string(data), "refreshToken") {
				t.Errorf("a secret is in\n%s", data)
			}
			again, err := format.Parse(data)
			if err != nil {
				t.Fatalf("%v\n%s", err, data)
			}
			if got := text(again); got != strings.ReplaceAll(want, "REAL", "FAKE") {
				t.Errorf("read again: %s\n%s", got, data)
			}
			first := f.Secrets[0].Name
			if data, err = f.Write(map[string]string{first: "FAKE-a"}); err != nil || strings.Contains(string(data), "REAL") {
				t.Errorf("only %s: %v\n%s", first, err, data)
			}
		})
	}
}

func text(f *File) string {
	var out []string
	for _, s := range f.Secrets {
		out = append(out, fmt.Sprint(s.Name, " ", s.Value.Reveal(), " ", s.Hosts))
	}
	return strings.Join(out, "; ")
}

// TestUnusable: a file without a login, or of another form, is an error that has nothing of
// it.
func TestUnusable(t *testing.T) {
	for _, name := range Names() {
		format, _ := Get(name)
		for _, data := range []string{"", "\x00hunter2", "{hunter2", "[1, hunter2]", `{"auths": "hunter2"}`, "machine", "github.com: {user: me}"} {
			if f, err := format.Parse([]byte(data)); err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s %q: %v, %v", name, data, f, err)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range files {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range Names() {
			format, _ := Get(name)
			file, err := format.Parse(data)
			if err != nil {
				continue
			}
			if _, err := file.Write(map[string]string{}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
