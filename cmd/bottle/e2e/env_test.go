package e2e

import (
	"maps"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// odd is a value that each way of passing it on could change.
const odd = "one=1\n two\t'2' \"3\" $HOME `x` \\n # ünï😀\r\n\n"

const envManifest = `
version: 1
bottles:
  dev:
    env:
      LITERAL: "one=1\n two\t'2' \"3\" $HOME ` + "`x`" + ` \\n # ünï😀\r\n\n"
      FORWARDED: {from: CALLERS}
      FILE: {file: secret}
agents:
  sh: {bottle: dev, command: [sh]}
  wait: {bottle: dev, command: [sh, -c, "echo ready; cat"]}
`

// TestEnvironment checks that values arrive byte for byte from each source.
func TestEnvironment(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("CALLERS="+odd, "NAMED="+odd, "LISTED="+odd, "CLAUDE_BOTTLE_OAUTH_TOKEN="+odd)
	u.write("bottle.yaml", envManifest)
	u.write("secret", odd+"\n")
	u.write("nul.env", "NUL="+odd+"\x00LISTED\x00BYTES=\xff\xfe\x00")
	u.write("lines.env", "# docker's\nLINE= 'q' \"ü\" #x \n\nLAST=a=b")
	want := map[string]string{
		"LITERAL": odd, "FORWARDED": odd, "FILE": odd, "NAMED": odd, "LISTED": odd, "NUL": odd, "GIVEN": odd, "FD": odd,
		"BYTES": "\xff\xfe", "LINE": " 'q' \"ü\" #x ", "LAST": "a=b", "CLAUDE_CODE_OAUTH_TOKEN": odd,
	}
	t.Run("run", func(t *testing.T) {
		cmd := u.command("run", "sh", "--proxy", "builtin", "--yes", "-e", "NAMED", "-e", "GIVEN="+odd,
			"--env-file", "nul.env", "--env-file", "lines.env", "--env-from-fd", "3", "--", "-c", "env -0")
		cmd.ExtraFiles = []*os.File{piped(t, "FD="+odd+"\x00")}
		checkEnvironment(t, cmd, want)
	})
	t.Run("exec", func(t *testing.T) {
		l := u.start("claude-bottle-env")
		cmd := u.command("exec", "-e", "NAMED", "-e", "GIVEN="+odd, "--env-file", "nul.env", "--env-file", "lines.env",
			"--env-from-fd", "0", l.name, "env", "-0")
		cmd.Stdin = strings.NewReader("FD=" + odd + "\x00")
		checkEnvironment(t, cmd, want)
		if code := l.end(); code != 0 {
			t.Errorf("exit %d\n%s", code, l.errs)
		}
	})
	t.Run("no token", func(t *testing.T) {
		r := u.bottle("run", "sh", "--proxy", "builtin", "--yes", "--forward-oauth-token=false", "--", "-c", "echo ${CLAUDE_CODE_OAUTH_TOKEN-none}")
		r.want(t, 0, "none\n")
	})
}

// piped returns the end of a pipe that a text can be read from.
func piped(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, err := w.WriteString(text); err != nil { // less than a pipe holds
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return r
}

func checkEnvironment(t *testing.T, cmd *exec.Cmd, want map[string]string) {
	t.Helper()
	r := finish(t, cmd)
	if r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	got := map[string]string{}
	for _, kv := range strings.Split(r.stdout, "\x00") {
		if name, value, ok := strings.Cut(kv, "="); ok && want[name] != "" {
			got[name] = value
		}
	}
	if !maps.Equal(got, want) {
		for name := range want {
			if got[name] != want[name] {
				t.Errorf("%s is %q, want %q", name, got[name], want[name])
			}
		}
	}
}

// TestEnvironmentMistakes checks that errors contain the position and no value.
func TestEnvironmentMistakes(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bad.env", "A=1\nB C=hunter2\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--env-file", "bad.env"}, "env file bad.env, line 2: "},
		{[]string{"--env-file", "none.env"}, "open none.env: no such file"},
		{[]string{"--env-from-fd", "9"}, "file descriptor 9 is not open for reading\nhint: sudo closes"},
		{[]string{"--env-from-fd", "2"}, "file descriptor 2 is for output"},
		{[]string{"--forward-oauth-token"}, "cannot forward CLAUDE_BOTTLE_OAUTH_TOKEN: not set in the environment"},
		{[]string{"-e", "UNSET_ONE"}, "cannot forward UNSET_ONE: not set in the environment"},
		{[]string{"-e", "1X=hunter2"}, `-e: invalid variable name "1X"`},
	} {
		r := u.bottle(append([]string{"run", "sh", "--proxy", "builtin", "--yes"}, c.args...)...)
		if r.code != 125 || !strings.Contains(r.stderr, c.want) || strings.Contains(r.stderr, "hunter2") {
			t.Errorf("%v: exit %d, %q, want %q", c.args, r.code, r.stderr, c.want)
		}
	}
	r := u.with("SUDO_UID=0").bottle("run", "sh", "--proxy", "builtin", "--yes", "-e", "UNSET_ONE")
	if !strings.Contains(r.stderr, "sudo --preserve-env=UNSET_ONE bottle") {
		t.Errorf("under sudo: %q", r.stderr)
	}
}
