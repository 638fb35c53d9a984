package e2e

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const provisionManifest = `
version: 1
bottles:
  claude:
    image: claude-bottle:claude
    env:
      ANTHROPIC_API_KEY: {from: TEST_KEY, inject: false} # the key itself must not reach the disk
      CLAUDE_CODE_MAX_RETRIES: 0
      FROM_MANIFEST: said there
    egress: {allow: [api.anthropic.com]}
    git: {name: A "Quoted" Person}
  oauth:
    image: claude-bottle:claude
    egress: {allow: [api.anthropic.com]}
  other:
    env: {DISABLE_AUTOUPDATER: "0"}
agents:
  claude:
    bottle: claude
    command: [claude]
    prompt: |
      You are the reviewer whom the manifest made, with ü and "quotes".
    skills: [review]
  oauth: {bottle: oauth, command: [claude]}
  shell: {bottle: other, command: [sh], prompt: "text of the prompt", skills: [review]}
  plain: {bottle: other, command: [sh]}
`

// testKey looks like an API key. Claude Code identifies it by its end.
const testKey = "sk-ant-api03-a-test-key-which-ends-like-this-0123456789"

// owner returns a user with a home directory, a skill and a git identity.
func owner(t *testing.T) user {
	t.Helper()
	u := newUser(t)
	home := t.TempDir()
	for name, text := range map[string]string{
		".claude/skills/review/SKILL.md":      "---\nname: review\ndescription: Reviews a change as the test wants it.\n---\n\nThe body of the skill.\n",
		".claude/skills/review/bin/tool":      "#!/bin/sh\necho tool ran\n",
		".claude/skills/review/.git/config":   "credentials\n",
		".gitconfig":                          "[user]\n\tname = Somebody Else\n\temail = somebody@example.test\n",
		".claude/skills/review/docs/notes.md": "notes\n",
	} {
		file := filepath.Join(home, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("docs/notes.md", filepath.Join(home, ".claude/skills/review/link.md")); err != nil {
		t.Fatal(err)
	}
	u.write("bottle.yaml", provisionManifest)
	return u.with("HOME="+home, "TEST_KEY="+testKey)
}

// TestProvision checks the files of an agent, their owners and modes: prompt, skills and
// identity.
func TestProvision(t *testing.T) {
	leakcheck.Check(t)
	r := owner(t).run("shell", "-c", `
cat "$BOTTLE_PROMPT_FILE"; echo; stat -c '%n %U %a' "$BOTTLE_PROMPT_FILE"
cd ~/.claude/skills/review; find . -printf '%p %y %u %m\n' | sort; cat link.md; ./bin/tool
git config user.name; git config user.email; git config safe.directory
echo $DISABLE_AUTOUPDATER $CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC
stat -c '%n %U %a' ~/.claude.json ~/.claude/settings.json ~/.gitconfig`)
	r.want(t, 0, `text of the prompt
/.bottle/prompt agent 600
. d agent 755
./SKILL.md f agent 644
./bin d agent 755
./bin/tool f agent 755
./docs d agent 755
./docs/notes.md f agent 644
./link.md f agent 644
notes
tool ran
Somebody Else
somebody@example.test
*
0 1
/home/agent/.claude.json agent 600
/home/agent/.claude/settings.json agent 600
/home/agent/.gitconfig agent 644
`)
	owner(t).run("plain", "-c", `echo "${BOTTLE_PROMPT_FILE-unset}"; test -e /.bottle/prompt || echo no file; ls ~/.claude`).
		want(t, 0, "unset\nno file\nsettings.json\n")
}

// TestSkillMistakes: errors are reported before anything is created.
func TestSkillMistakes(t *testing.T) {
	leakcheck.Check(t)
	u := owner(t).with("HOME=" + t.TempDir())
	r := u.run("shell", "-c", "true")
	if r.code != 125 || !strings.Contains(r.stderr, "missing skill 'review': no directory ") || !strings.Contains(r.stderr, "\nhint: create it there\n") {
		t.Errorf("exit %d:\n%s", r.code, r.stderr)
	}
}

// TestClaudeSees checks what the real Claude Code sends to a mock of its API.
func TestClaudeSees(t *testing.T) {
	leakcheck.Check(t)
	u := owner(t).with("NOT_NAMED=never")
	seen, requests := messages(t), labtest.World(t)
	r := u.run("claude", "-p", "RUN: env | sort", "--allowed-tools", "Bash")
	if r.code != 0 {
		t.Fatalf("exit %d:\n%s%s", r.code, r.stdout, r.stderr)
	}
	onlyTheAPI(t, requests())
	system, results := apiTexts(seen())
	if want := `You are the reviewer whom the manifest made, with ü and \"quotes\".`; !strings.Contains(system, want) {
		t.Errorf("the API did not receive %q", want)
	}
	if want := "Reviews a change as the test wants it."; !strings.Contains(results, want) {
		t.Errorf("the API did not receive the skill: %q", want)
	}
	for _, never := range []string{"The body of the skill.", "NOT_NAMED", "TEST_KEY"} {
		if strings.Contains(system+results, never) {
			t.Errorf("the API received %q", never)
		}
	}
	for _, want := range []string{
		`FROM_MANIFEST=said there\n`, `CLAUDE_CODE_MAX_RETRIES=0\n`, `DISABLE_AUTOUPDATER=1\n`,
		`CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1\n`, `CLAUDE_CODE_DISABLE_OFFICIAL_MARKETPLACE_AUTOINSTALL=1\n`,
		`BOTTLE_PROMPT_FILE=/.bottle/prompt\n`, `HTTPS_PROXY=http://10.77.0.1:8888\n`,
	} {
		if !strings.Contains(results, want) {
			t.Errorf("the agent's environment lacks %q", want)
		}
	}
	// The skill at work.
	seen = messages(t)
	if r := u.run("claude", "-p", "/review"); r.code != 0 {
		t.Fatalf("exit %d:\n%s%s", r.code, r.stdout, r.stderr)
	}
	if _, got := apiTexts(seen()); !strings.Contains(got, "The body of the skill.") {
		t.Error("the skill was used, and the API did not receive its body")
	}
}

// apiTexts returns the texts of requests: of the system prompt, and of messages.
func apiTexts(requests []message) (system, messages string) {
	for _, m := range requests {
		system += string(m.System)
		messages += string(m.Messages)
	}
	return system, messages
}

// TestClaudeScreen starts Claude Code on a terminal: it shows its prompt first, and the
// mock answers. What it stores of the API key is in memory, and not on the host's disk.
func TestClaudeScreen(t *testing.T) {
	leakcheck.Check(t)
	u := owner(t).with("TERM=xterm-256color")
	requests := labtest.World(t)
	x := u.onTerminal(100, 40, "run", "claude", "--proxy", "builtin", "--yes", "--name", "claude-bottle-screen")
	x.seesPrompt()
	state := u.exec("claude-bottle-screen", "sh", "-c", "readlink ~/.claude.json; cat ~/.claude.json; stat -f -c %T /.bottle/run")
	part := testKey[len(testKey)-20:]
	if !strings.HasPrefix(state.stdout, "/.bottle/run/claude.json\n") || !strings.Contains(state.stdout, `"`+part+`"`) ||
		!strings.HasSuffix(state.stdout, "tmpfs\n") {
		t.Errorf("Claude Code's state:\n%s%s", state.stdout, state.stderr)
	}
	u.exec("claude-bottle-screen", "sh", "-c", "echo planted-on-disk-0123 > ~/planted; sync ~/planted").want(t, 0, "")
	if found := onDisk(t, "planted-on-disk-0123"); len(found) == 0 {
		t.Error("the search does not find what was planted, so that it shows nothing")
	}
	if found := onDisk(t, part); len(found) > 0 {
		t.Errorf("the API key's end is on the host's disk: %v", found)
	}
	onlyTheAPI(t, requests())
	if denied := u.bottle("egress", "claude-bottle-screen", "--denied").stdout; denied != "" {
		t.Errorf("Claude Code wanted more than the API:\n%s", denied)
	}
	x.leaves()
}

// TestClaudeScreenWithToken does the same with a subscription's token.
func TestClaudeScreenWithToken(t *testing.T) {
	leakcheck.Check(t)
	u := owner(t).with("TERM=xterm-256color", "CLAUDE_BOTTLE_OAUTH_TOKEN=sk-ant-oat01-a-test-token-0123456789")
	x := u.onTerminal(100, 40, "run", "oauth", "--proxy", "builtin", "--yes")
	x.seesPrompt()
	x.leaves()
}

// TestClaudeOfAnImage runs an image that has settings for Claude Code.
// They are kept, and Claude Code still starts with its prompt.
func TestClaudeOfAnImage(t *testing.T) {
	u := newBuilder(t).with("TERM=xterm-256color", "TEST_KEY="+testKey, "HOME="+t.TempDir())
	u.write("bottle.yaml", `
version: 1
bottles:
  own:
    image: e2e-claude:latest
    build: {context: img}
    env: {ANTHROPIC_API_KEY: {from: TEST_KEY}, CLAUDE_CODE_MAX_RETRIES: 0}
    egress: {allow: [api.anthropic.com]}
    git: {email: person@example.test}
agents:
  own: {bottle: own, command: [claude]}
`)
	u.dockerfile("FROM claude-bottle:claude\nCOPY --chown=1000:1000 home /home/agent\n")
	for name, text := range map[string]string{
		".claude.json":          `{"theme": "light", "tipsHistory": {"x": 4711}, "projects": {"/workspace": {"hasTrustDialogAccepted": false, "lastCost": 1}, "/other": {}}}`,
		".claude/settings.json": `{"env": {"OF_THE_IMAGE": "1"}, "skipDangerousModePermissionPrompt": false}`,
		".gitconfig":            "[user]\n\tname = Of The Image\n\temail = image@example.test\n[alias]\n\tst = status", // no line break at its end
		".ssh/config":           "Host *\n  User image\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(u.dir, "img/home", name)), 0o755); err != nil {
			t.Fatal(err)
		}
		u.write(filepath.Join("img/home", name), text)
	}
	removeImage(t, "e2e-claude:latest")
	x := u.onTerminal(100, 40, "run", "own", "--proxy", "builtin", "--yes", "--name", "claude-bottle-own")
	x.seesPrompt()
	r := u.exec("claude-bottle-own", "sh", "-c", `grep -E '"(theme|x|lastCost|/other|hasTrustDialogAccepted)"' ~/.claude.json | tr -d ' ,\n'; echo; tr -d ' \n' <~/.claude/settings.json; echo
git config user.name; git config user.email; git config alias.st; cat ~/.ssh/config`)
	for _, want := range []string{
		`"theme":"light"`, `"x":4711`, `"lastCost":1`, `"/other":{`, `"hasTrustDialogAccepted":true`,
		`"env":{"OF_THE_IMAGE":"1"}`, `"skipDangerousModePermissionPrompt":false`, "\nOf The Image\nperson@example.test\nstatus\nInclude /.bottle/ssh/config\nHost *\n",
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %s in\n%s%s", want, r.stdout, r.stderr)
		}
	}
	x.leaves()
}

// seesPrompt waits for Claude Code's prompt, and fails if a question was before
// it.
func (x *terminal) seesPrompt() {
	x.t.Helper()
	before := x.sees("❯")
	// Typed immediately, it appears after the prompt; a question would not accept it.
	x.types("typed immediately")
	before += x.sees("typed immediately")
	for _, question := range []string{"Do you trust", "Detected a custom API key", "Choose the text style", "Select login method"} {
		if strings.Contains(before, plain(question)) {
			x.t.Errorf("Claude Code asks %q", question)
		}
	}
}

// leaves ends Claude Code.
func (x *terminal) leaves() {
	x.t.Helper()
	x.types("\x03")
	x.sees("again to exit")
	x.types("\x03")
	if code := x.wait(); code != 0 {
		x.t.Errorf("exit %d", code)
	}
}

// onlyTheAPI fails unless the API was asked, and nobody else, by name or address.
func onlyTheAPI(t *testing.T, events []labtest.WorldEvent) {
	t.Helper()
	asked := false
	for _, e := range events {
		if e.Event != "request" {
			continue
		}
		asked = asked || e.Host == "api.anthropic.com"
		if e.Host != "api.anthropic.com" {
			t.Errorf("a request to another host than the API: %+v", e)
		}
	}
	if !asked {
		t.Error("the API was not asked")
	}
}

// message is a request that the mock of the Messages API has got.
type message struct {
	System, Messages json.RawMessage
}

// messages yields what the mock gets from now on.
func messages(t *testing.T) (since func() []message) {
	t.Helper()
	dir := filepath.Join(os.Getenv("LAB_STATE"), "world/messages")
	old := map[string]bool{}
	for _, f := range list(t, dir) {
		old[f] = true
	}
	return func() []message {
		t.Helper()
		var out []message
		for _, f := range list(t, dir) {
			if old[f] {
				continue
			}
			data, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil {
				t.Fatal(err)
			}
			var m message
			if err := json.Unmarshal(data, &m); err != nil {
				t.Fatal(err)
			}
			out = append(out, m)
		}
		return out
	}
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// onDisk returns the files in the directories of containerd and bottle that contain
// a text and were written in the last minutes: bottles write nowhere else.
func onDisk(t *testing.T, text string) []string {
	t.Helper()
	var found []string
	for _, root := range []string{"/var/lib/bottle-lab/" + os.Getenv("LAB_ID"), "/var/lib/bottle"} {
		err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil //nolint:nilerr // it vanished meanwhile
			}
			fi, err := d.Info()
			if err != nil || time.Since(fi.ModTime()) > 3*time.Minute {
				return nil //nolint:nilerr // it vanished meanwhile
			}
			if fileHolds(t, p, text) {
				found = append(found, p)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// fileHolds reads in pieces: the store of a sandbox's files is large and sparse.
func fileHolds(t *testing.T, file, text string) bool {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	buf, kept := make([]byte, 1<<20), 0
	for {
		n, err := f.Read(buf[kept:])
		if bytes.Contains(buf[:kept+n], []byte(text)) {
			return true
		}
		if err != nil {
			return false
		}
		kept = copy(buf, buf[max(0, kept+n-len(text)):kept+n])
	}
}

// escapes are what moves a terminal's cursor and sets its colours.
var escapes = regexp.MustCompile(`\x1b(\[[0-9;?<>=]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|.)|[\s\x{a0}]`)

// plain is a screen's text without colours and blanks: programs move the cursor
// over blanks.
func plain(screen string) string { return escapes.ReplaceAllString(screen, "") }

// sees reads until a text is on the screen, and returns all of the screen as plain
// text.
func (x *terminal) sees(text string) string {
	x.t.Helper()
	var seen []byte
	limit := time.After(longest)
	for !strings.Contains(plain(string(seen)), plain(text)) {
		select {
		case b, ok := <-x.out:
			if !ok {
				x.t.Fatalf("waiting for %q: the end; seen:\n%s", text, plain(string(seen)))
			}
			seen = append(seen, b)
			for len(x.out) > 0 {
				seen = append(seen, <-x.out)
			}
		case <-limit:
			x.t.Fatalf("waiting for %q; seen:\n%s", text, plain(string(seen)))
		}
	}
	return plain(string(seen))
}

// TestClaudeIsRejoined draws Claude Code's screen, types into it, suspends it, leaves it by
// keys and by the death of the client, and finds it again on another terminal.
func TestClaudeIsRejoined(t *testing.T) {
	leakcheck.Check(t)
	u := owner(t).with("TERM=xterm-256color")
	const name = "claude-bottle-rejoined"
	x := u.onTerminal(100, 40, "run", "claude", "--keep", "--proxy", "builtin", "--yes", "--name", name)
	x.seesPrompt()
	x.types("\x1a")
	x.sees("a session cannot be suspended")
	x.types("\x10\x11")
	x.sees("Detached: " + name)
	if code := x.wait(); code != 0 {
		t.Errorf("detached: exit %d", code)
	}
	x = u.onTerminal(120, 45, "attach", name)
	x.sees("typed immediately")
	x.types(" and later")
	x.sees("and later")
	if err := x.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = x.cmd.Wait()
	x = u.onTerminal(90, 35, "attach", name)
	x.sees("typed immediately and later")
	x.leaves()
	u.bottle("wait", name).want(t, 0, "0\n")
	u.bottle("rm", name).want(t, 0, name+"\n")
}
