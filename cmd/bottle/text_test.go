package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/doctor"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// newApp returns an app and its standard output and error.
func newApp() (a *app, stdout, stderr *bytes.Buffer) {
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return &app{stdin: strings.NewReader(""), stdout: stdout, stderr: stderr}, stdout, stderr
}

func fullPlan() *plan.Plan {
	return &plan.Plan{
		Agent: "impl", Bottle: "dev", Manifest: "/home/me/src/bottle.yaml", Name: "claude-bottle-impl",
		Image: "docker.io/library/claude-bottle:latest", Runtime: "runc",
		Build: &plan.Build{
			Reason: plan.BuildInputs, Context: "/home/me/src", Dockerfile: "/home/me/src/D", Target: "dev", Args: map[string]string{"B": "2", "A": ""},
			Secrets: []plan.BuildSecret{{ID: "npm", From: "/home/me/.npmrc", Value: secret.New("hunter2")}, {ID: "token", From: "env:TOKEN", Value: secret.New("hunter2")}},
		},
		Command: []string{"claude", "--model=x", "", "fix the test", "a\n  allowed hosts  none\x1b[2K", "it's", "é"},
		Env: []provision.Variable{
			{Name: "LOG_LEVEL", Source: manifest.SourceLiteral, Literal: "debug\n\x1b[2K" + strings.Repeat("é", 60)},
			{Name: "GITHUB_TOKEN", Source: manifest.SourceForwarded, From: "GITHUB_TOKEN", Secret: secret.New("hunter2")},
			{Name: "NPM_TOKEN", Source: manifest.SourceForwarded, From: "WORK_NPM_TOKEN", Secret: secret.New("hunter2")},
			{Name: "GIVEN", Source: provision.SourceArgument, Secret: secret.New("hunter2")},
			{Name: "API_KEY", Source: manifest.SourcePrompt, Ask: "API key"},
			{Name: "KEY", Source: manifest.SourceFile, From: "/home/me/.key", Secret: secret.New("hunter2")},
		},
		Egress: manifest.Egress{
			Allow: []string{"@github", "*.github.com", "api.anthropic.com"}, Deny: []string{"@debian", "uploads.github.com"}, AllowPrivate: []string{"10.1.0.0/16"},
		}.Expand(),
		Proxy:   plan.Proxy{Kind: "builtin"},
		Network: plan.Network{Internal: "10.77.0.0/30", Egress: "10.210.0.0/16", Bridge: "bottle0", Changes: []string{"net.ipv4.ip_forward is turned on"}},
		Limits:  manifest.Limits{Memory: 4 << 30, CPUs: 1.5, Pids: 4096, Disk: 20 << 30, Workspace: 10 << 30},
		Prompt:  "hunter2", PromptBytes: 7, Skills: []string{"review", "test"},
		SSH:      []manifest.SSHHost{{Host: "work", HostName: "git.example.com", Port: 2222, User: "git", HostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMXzLOKiMaFavzePnIti3zo3Ccxii84yQm7sMFRspFsd", IdentityFile: "/k", Mode: manifest.SSHAgent}, {Host: "old", HostName: "old.test", Port: 22, IdentityFile: "/k", PubkeyAuthentication: manifest.PubkeyUnbound}, {Host: "gh", HostName: "github.com", Port: 22, IdentityFile: "/k", Forge: "github.com"}},
		Git:      &manifest.Git{Name: "A Person", Email: "a@example.com"},
		Warnings: []string{"runtime runc: less is kept apart", "the host is odd"},
		Dir:      "/home/me/project", Target: "/workspace", Workspace: &plan.Workspace{Size: 10 << 30},
	}
}

func TestPrintPlan(t *testing.T) {
	var got bytes.Buffer
	bare := &plan.Plan{
		Agent: "a", Bottle: "b", Manifest: "/m.json", Name: "n", Image: "i", Runtime: "runsc", Command: []string{"c"}, BaseRef: "docker.io/library/base:1", Dir: "/home/me/work", Target: "/workspace", Pull: "docker.io/library/base:1",
		Proxy: plan.Proxy{Kind: "builtin"}, Limits: manifest.Limits{Memory: 64<<20 + 1, Pids: 16, Disk: 1 << 30, Workspace: 1 << 30},
	}
	for _, p := range []*plan.Plan{fullPlan(), bare} {
		if err := printPlan(&got, p, "approved on 2026-01-02"); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(got.String(), "hunter2") || strings.Contains(got.String(), "\x1b") {
		t.Error("the plan shows a secret or a control character")
	}
	const golden = "testdata/plan.txt"
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("got (rewrite with -update):\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestShowPlan(t *testing.T) {
	a, stdout, stderr := newApp()
	if err := a.showPlan(fullPlan(), &approval{}, false); err != nil || stdout.Len() != 0 || stderr.Len() == 0 {
		t.Errorf("as text: %v, stdout %q", err, stdout)
	}
	a, stdout, stderr = newApp()
	if err := a.showPlan(fullPlan(), &approval{}, true); err != nil || stderr.Len() != 0 || !strings.HasPrefix(stdout.String(), "{\n") {
		t.Errorf("as JSON: %v, stderr %q", err, stderr)
	}
	if strings.Contains(stdout.String(), "hunter2") {
		t.Error("the JSON shows a secret")
	}
}

// hostile contains control characters; harmless is how it is printed.
const (
	hostile  = "a\x1b[2K\x7f\u009b2K\u202e\U000e0041z"
	harmless = "a\ufffd[2K\ufffd\ufffd2K\ufffd\ufffdz"
)

// controlIndex is the index of the first character that a terminal would interpret.
func controlIndex(s string) int {
	return strings.IndexFunc(s, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) })
}

// TestNoControlCharacters prints hostile text, as an agent, an image or an untrusted
// manifest may contain it, through everything that prints.
func TestNoControlCharacters(t *testing.T) {
	if controlIndex(hostile) < 0 {
		t.Fatal("the control: the text has no control characters")
	}
	p := fullPlan()
	p.Image, p.Skills, p.Warnings, p.Egress.Allow = hostile, []string{hostile}, []string{hostile}, []string{hostile}
	p.Command, p.Manifest, p.Git.Name, p.Env[0].Name = []string{hostile}, hostile, hostile, hostile
	entry := egress.Entry{Event: "blocked", Target: hostile + ":443", Method: hostile, Reason: hostile, SNI: hostile, Rule: hostile}
	hosts := []egress.HostSummary{{Destination: hostile, Refused: 1}}
	for name, print := range map[string]func(*app) error{
		"plan":        func(a *app) error { return a.showPlan(p, &approval{}, false) },
		"plan's JSON": func(a *app) error { return a.showPlan(p, &approval{}, true) },
		"config": func(a *app) error {
			return printDescriptions(a.stdout, []manifest.Description{{Agent: "x", Image: hostile, Skills: []string{hostile}}})
		},
		"list": func(a *app) error {
			return a.printList([]bottle.Status{{Name: hostile, Agent: hostile, Image: hostile, Status: hostile}})
		},
		"images": func(a *app) error {
			return a.printImages([]supply.Status{{Name: hostile, UsedBy: []string{hostile}}})
		},
		"egress":        func(a *app) error { return a.showEgress(logOf([]egress.Entry{entry}, nil), false, false) },
		"egress's JSON": func(a *app) error { return a.showEgress(logOf([]egress.Entry{entry}, nil), false, true) },
		"summary":       func(a *app) error { a.showSummary("n", hosts); return nil },
		"leftovers": func(a *app) error {
			a.printLeftovers([]bottle.Leftovers{{Name: hostile, Files: []string{hostile}}})
			return nil
		},
		"doctor": func(a *app) error {
			return a.doctor([]doctor.Finding{{Check: "x", Level: "warn", Detail: hostile, Fix: hostile}}, false)
		},
		"error":       func(a *app) error { a.printError(errors.New(hostile)); return nil },
		"proxy's end": func(a *app) error { a.note(textNoRestart, hostile, oneLine(hostile)); return nil },
	} {
		a, stdout, stderr := newApp()
		if err := print(a); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		out := stdout.String() + stderr.String()
		if i := controlIndex(out); i >= 0 {
			t.Errorf("%s: a terminal would obey %q", name, out[i:min(len(out), i+8)])
		}
		if !strings.Contains(out, harmless) && !strings.Contains(out, `\u001b`) && !strings.Contains(out, `\x1b`) {
			t.Errorf("%s does not show the text at all: %q", name, out)
		}
	}
	// The JSON still has the same value.
	a, stdout, _ := newApp()
	if err := a.printJSON(hostile); err != nil {
		t.Fatal(err)
	}
	var back string
	if err := json.Unmarshal(stdout.Bytes(), &back); err != nil || back != hostile {
		t.Errorf("read back as %q, %v", back, err)
	}
}

func TestPrintPlanWriteError(t *testing.T) {
	if err := printPlan(brokenWriter{}, fullPlan(), ""); !errors.Is(err, errBroken) {
		t.Errorf("got %v", err)
	}
}

var errBroken = errors.New("broken")

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errBroken }

func TestPrintError(t *testing.T) {
	hinted := &hint.Error{Err: errors.New("no runsc"), Hint: "install it"}
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("plain"), "bottle: plain\n"},
		{hinted, "bottle: no runsc\nhint: install it\n"},
		{fmt.Errorf("prepare: %w", hinted), "bottle: prepare: no runsc\nhint: install it\n"},
		{errors.New("two\nlines"), "bottle: two; lines\n"},
		{fmt.Errorf("user %s", "a\x1b[2K\u009b1m\u202eb"), "bottle: user a\ufffd[2K\ufffd1m\ufffdb\n"},
		{errors.Join(hinted, errors.New("b")), "bottle: no runsc\nhint: install it\nbottle: b\n"},
		{hint.Problems{errors.New("a"), hinted, errors.New("c")}, "bottle: a\nbottle: no runsc\nhint: install it\nbottle: c\n"},
		{fmt.Errorf("x: %w", errors.Join(errors.New("a"), errors.New("b"))), "bottle: x: a; b\n"},
		{withHint(errors.New("n"), "two\nlines\x1b"), "bottle: n\nhint: two; lines\ufffd\n"},
		{withHint(fmt.Errorf(textRemoveFailed, "n", errors.New("busy")), hintRemoveFailed), "bottle: remove n: busy\nhint: bottle cleanup shows and removes what is left\n"},
	} {
		a, stdout, stderr := newApp()
		a.printError(c.err)
		if stderr.String() != c.want || stdout.Len() != 0 {
			t.Errorf("got %q, want %q", stderr, c.want)
		}
	}
}

func TestPrintList(t *testing.T) {
	a, stdout, stderr := newApp()
	if err := a.printList(nil); err != nil || stdout.Len() != 0 || stderr.String() != "No bottles are running.\n" {
		t.Errorf("none: %v, %q, %q", err, stdout, stderr)
	}
	a, stdout, stderr = newApp()
	list := []bottle.Status{
		{Name: "claude-bottle-impl", Agent: "impl", Image: "a:1", Runtime: "runsc", Status: "running", Created: time.Now().Add(-90 * time.Minute)},
		{Name: "n", Agent: "b", Image: "c", Runtime: "runc", Status: "running, proxy is gone", Created: time.Now().Add(-72 * time.Hour)},
	}
	if err := a.printList(list); err != nil {
		t.Fatal(err)
	}
	want := `NAME                 AGENT   IMAGE   RUNTIME   STATUS                   AGE
claude-bottle-impl   impl    a:1     runsc     running                  1h
n                    b       c       runc      running, proxy is gone   3d
`
	if stdout.String() != want || stderr.Len() != 0 {
		t.Errorf("got\n%s%s\nwant\n%s", stdout, stderr, want)
	}
}

func TestPrintLeftovers(t *testing.T) {
	a, stdout, stderr := newApp()
	a.printLeftovers(nil)
	if stdout.Len() > 0 || stderr.String() != "There is nothing to remove.\n" {
		t.Errorf("none: %q", stderr)
	}
	a, stdout, stderr = newApp()
	a.printLeftovers([]bottle.Leftovers{
		{Name: "n", Containers: []string{"n (running)", "n.proxy (none)"}, Networks: []string{"bottle0"}, Files: []string{"/run/x"}},
		{Name: "empty"},
	})
	want := "n\n  container  n (running)\n  container  n.proxy (none)\n  network    bottle0\n  files      /run/x\nempty\n"
	if stderr.String() != want || stdout.Len() != 0 {
		t.Errorf("got %q, want %q", stderr, want)
	}
}

func TestAgeAndSize(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s": 0, "59s": 59999 * time.Millisecond, "1m": time.Minute, "59m": time.Hour - 1, "1h": time.Hour, "47h": 48*time.Hour - 1, "2d": 48 * time.Hour,
	} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %s, want %s", d, got, want)
		}
	}
	if got := age(-time.Hour); got != "0s" {
		t.Errorf("age of what was created before the clock was set back: %s", got)
	}
	for want, n := range map[string]int64{"1 GiB": 1 << 30, "1536 MiB": 3 << 29, "64 MiB": 64 << 20, "100 bytes": 100, "0 bytes": 0} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}
