package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/scripts/leakcheck"
)

const buildManifest = `
version: 1
bottles:
  own:
    image: e2e-own:latest
    build: {context: img, args: {WORD: hej}, secrets: {tok: tok, var: "env:TEST_KEY"}}
agents:
  own: {bottle: own, command: [cat, /made]}
  image: {bottle: own}
`

// newBuilder is a user whose builds leave nothing behind the test.
func newBuilder(t *testing.T) user {
	t.Helper()
	leakcheck.Check(t)
	u := newUser(t).with("BOTTLE_STATE_DIR="+t.TempDir(), "TEST_KEY=from-a-variable")
	t.Cleanup(func() { u.bottle("build", "--prune").want(t, 0, "") })
	return u
}

func (u user) dockerfile(text string) {
	u.t.Helper()
	if err := os.MkdirAll(filepath.Join(u.dir, "img"), 0o755); err != nil {
		u.t.Fatal(err)
	}
	u.write("img/Dockerfile", text)
}

func removeImage(t *testing.T, name string) {
	t.Helper()
	t.Cleanup(func() { ctr(t, "images", "rm", "--sync", "docker.io/library/"+name) })
}

// TestRunBuilds runs, under gVisor, an image that its manifest says how to build:
// when it is missing, again when something has changed, and never twice the same.
func TestRunBuilds(t *testing.T) {
	u := newBuilder(t)
	u.write("bottle.yaml", buildManifest)
	u.write("tok", "from-a-file")
	u.dockerfile(`FROM bottle-demo:latest
USER root
ARG WORD
RUN --mount=type=secret,id=tok --mount=type=secret,id=var \
    echo "$WORD $(sha256sum /run/secrets/tok | cut -c1-8) $(sha256sum /run/secrets/var | cut -c1-8)" >/made && od -An -N8 -tx1 /dev/urandom >/random
COPY --chmod=0644 given /given
USER 1000:1000
CMD ["cat", "/made", "/given"]
`)
	u.write("img/given", "one\n")
	removeImage(t, "e2e-own:latest")
	dry := u.bottle("run", "own", "--proxy", "builtin", "--dry-run")
	dry.want(t, 0, "")
	if !strings.Contains(dry.stderr, "img/Dockerfile") || !strings.Contains(dry.stderr, "secrets tok, var") || strings.Contains(dry.stderr, "from-a") {
		t.Errorf("the plan says:\n%s", dry.stderr)
	}
	if out, err := exec.Command("ctr", "images", "ls", "-q").Output(); err != nil || bytes.Contains(out, []byte("e2e-own")) {
		t.Errorf("a plan alone has built: %s%v", out, err)
	}
	const made = "hej " + sumFile + " " + sumVariable + "\n"
	const progress = "load build definition"
	r := u.run("own")
	r.want(t, 0, made)
	if !strings.Contains(r.stderr, progress) {
		t.Errorf("the build shows no progress:\n%s", r.stderr)
	}
	first := u.run("image", "/random")
	again := u.run("image", "/random")
	again.want(t, 0, first.stdout)
	if strings.Contains(first.stderr+again.stderr, progress) {
		t.Errorf("a build of what has not changed shows progress:\n%s%s", first.stderr, again.stderr)
	}
	if want := made + "one\n"; !strings.HasPrefix(first.stdout, want) || len(first.stdout) < len(want)+8 {
		t.Errorf("the image's command printed %q", first.stdout)
	}
	u.write("img/given", "two\n")
	changed := u.run("image")
	changed.want(t, 0, made+"two\n")
}

// TestCwdBuilds: with --cwd a missing base is built first, and the working
// directory's image is made anew when the base has changed.
func TestCwdBuilds(t *testing.T) {
	u := newBuilder(t).with("CLAUDE_BOTTLE_DERIVED_IMAGE=e2e-own:cwd")
	u.write("bottle.yaml", strings.ReplaceAll(buildManifest, ", secrets: {tok: tok, var: \"env:TEST_KEY\"}", ""))
	u.write("outside", "outside\n")
	removeImage(t, "e2e-own:latest")
	removeImage(t, "e2e-own:cwd")
	for _, base := range []string{"one\n", "two\n"} {
		u.dockerfile("FROM bottle-demo:latest\nCOPY --chmod=0644 given /given\nUSER 1000:1000\nCMD [\"cat\", \"/given\"]\n")
		u.write("img/given", base)
		u.bottle("run", "image", "--cwd", "--proxy", "builtin", "--yes", "--", "outside").want(t, 0, base+"outside\n")
	}
}

// The first eight digits of the SHA-256 of the two secrets.
const sumFile, sumVariable = "cbfc3c40", "f6516411"

// TestBuildKilled kills a build in the middle of a step. The step goes on, as
// containerd runs it, until the next build ends it.
func TestBuildKilled(t *testing.T) {
	u := newBuilder(t)
	u.dockerfile("FROM bottle-demo:latest\nRUN --mount=type=secret,id=tok echo begun && sleep 987654\n")
	u.write("tok", "x")
	cmd := u.command("build", "--progress", "plain", "--secret", "id=tok,src=tok", "img")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	log := ""
	for lines := bufio.NewScanner(stderr); !strings.HasSuffix(log, " begun\n") && lines.Scan(); {
		log += lines.Text() + "\n"
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if !runs(t, "sleep 987654") {
		t.Fatalf("the step ended with its build, so that the test shows nothing:\n%s", log)
	}
	u.dockerfile("FROM bottle-demo:latest\nRUN true\n")
	if r := u.bottle("build", "-q", "img"); r.code != 0 {
		t.Fatalf("exit %d:\n%s", r.code, r.stderr)
	}
	if runs(t, "sleep 987654") {
		t.Error("the killed build's step still runs")
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(info, []byte("/.build/")) {
		t.Errorf("mounts are left, %v:\n%s", err, info)
	}
}

// runs tells whether a process has this command line.
func runs(t *testing.T, command string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err == nil && strings.ReplaceAll(strings.TrimRight(string(data), "\x00"), "\x00", " ") == command {
			return true
		}
	}
	return false
}

// TestBuildsAtOnce: of two builds one waits, and says so; both succeed.
func TestBuildsAtOnce(t *testing.T) {
	u := newBuilder(t)
	u.dockerfile("FROM bottle-demo:latest\nARG N\nRUN echo $N >/tmp/n && sleep 1\n")
	results := make(chan result, 2)
	for _, n := range []string{"1", "2"} {
		removeImage(t, "e2e-build:"+n)
		go func() {
			cmd := u.command("build", "-q", "-t", "e2e-build:"+n, "--build-arg", "N="+n, "img")
			var out, errs bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &errs
			_ = cmd.Run() // its exit code is what counts
			results <- result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
		}()
	}
	waited := 0
	for range 2 {
		r := <-results
		if r.code != 0 || !strings.HasPrefix(r.stdout, "sha256:") {
			t.Errorf("exit %d:\n%s%s", r.code, r.stdout, r.stderr)
		}
		waited += strings.Count(r.stderr, "waiting for it to end")
	}
	if waited != 1 {
		t.Errorf("%d of two builds waited", waited)
	}
}

// TestBuildMistakes: one line each, with what mends it.
func TestBuildMistakes(t *testing.T) {
	u := newBuilder(t)
	u.dockerfile("FROM scratch\n\nCOPPY a /\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-q", "img"}, "Dockerfile:3: COPPY a /"},
		{[]string{}, "one context is needed"},
		{[]string{"-q", "nowhere"}, "nowhere/Dockerfile"},
		{[]string{"--progress", "loud", "img"}, `no progress "loud"`},
		{[]string{"--secret", "id=x,env=NOT_SET", "img"}, "NOT_SET is not set"},
		{[]string{"--secret", "src=tok", "img"}, "id=ID"},
		{[]string{"--cache-size", "much", "img"}, `"much" is no size`},
		{[]string{"-t", "No Name", "img"}, "not an image's name"},
		{[]string{"--prune", "img"}, "nothing is built"},
	} {
		r := u.bottle(append([]string{"build"}, c.args...)...)
		if r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, c.want) || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%q: exit %d, %q, want %q", c.args, r.code, r.stderr, c.want)
		}
	}
}
