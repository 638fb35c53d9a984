package e2e

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
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

// TestRunBuilds runs, under gVisor, an image with build settings in its manifest.
// It is built if it is missing and after changes, and not again without changes.
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
	if !strings.Contains(dry.stderr, "img/Dockerfile") || !strings.Contains(dry.stderr, "tok from ") || !strings.Contains(dry.stderr, "var from the variable TEST_KEY") || strings.Contains(dry.stderr, "from-a") {
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
		t.Errorf("an unchanged build shows progress:\n%s%s", first.stderr, again.stderr)
	}
	if want := made + "one\n"; !strings.HasPrefix(first.stdout, want) || len(first.stdout) < len(want)+8 {
		t.Errorf("the image's command printed %q", first.stdout)
	}
	u.write("img/given", "two\n")
	changed := u.run("image")
	changed.want(t, 0, made+"two\n")
}

// TestCwdBuilds: with --cwd a missing base is built first, and the working
// directory's image is built again if the base has changed.
func TestCwdBuilds(t *testing.T) {
	u := newBuilder(t).with("CLAUDE_BOTTLE_DERIVED_IMAGE=e2e-own:cwd")
	u.write("bottle.yaml", strings.ReplaceAll(buildManifest, ", secrets: {tok: tok, var: \"env:TEST_KEY\"}", ""))
	u.write("outside", "outside\n")
	removeImage(t, "e2e-own:latest")
	removeImage(t, "e2e-own:cwd")
	for _, base := range []string{"one\n", "two\n"} {
		u.dockerfile("FROM bottle-demo:latest\nCOPY --chmod=0644 given /given\nUSER 1000:1000\nCMD [\"cat\", \"/given\"]\n")
		u.write("img/given", base)
		u.bottle("run", "image", "--cwd-image", "--proxy", "builtin", "--yes", "--", "outside").want(t, 0, base+"outside\n")
	}
}

// The first eight digits of the SHA-256 of the two secrets.
const sumFile, sumVariable = "cbfc3c40", "f6516411"

// everything is a Dockerfile of what BuildKit's frontend offers.
const everything = `# syntax=docker/dockerfile:1
ARG BASE=none
FROM ${BASE} AS tools
USER root
WORKDIR /work
ARG WORD=unset
ARG PASSED
RUN <<END
set -e
echo "$WORD $PASSED" >args
echo heredoc >>args
END
RUN --mount=type=secret,id=file --mount=type=secret,id=value \
    sha256sum /run/secrets/file /run/secrets/value | cut -c1-8 >secrets
RUN --mount=type=cache,target=/cache echo once >>/cache/n && cp /cache/n cache
RUN --mount=type=bind,source=given,target=/given --mount=type=bind,from=more,target=/more cat /given/a /more/b >bind
RUN od -An -N8 -tx1 /dev/urandom >random

FROM bottle-demo:latest AS unused
RUN exit 1

FROM bottle-demo:latest AS dev
COPY --from=tools --chown=1000:1000 /work/ /work/
COPY --from=more b /named
COPY . /context/
COPY --chmod=0755 <<"END" /script
#!/bin/sh
cd /work && cat args secrets cache bind random && cat /named && cd /context && echo * && echo $COLOR && id -u
END
ENV COLOR=green
LABEL made=here
USER 1000:1000
ENTRYPOINT ["/script"]

FROM dev
ENTRYPOINT ["false"]
`

// TestBuildEverything builds with all flags and runs the image under gVisor.
func TestBuildEverything(t *testing.T) {
	u := newBuilder(t)
	for name, text := range map[string]string{
		"img/given/a": "given\n", "img/kept.log": "", "img/left.log": "", "img/.dockerignore": "*.log\n!kept.log\n",
		"files/Make.file": everything, "more/b": "named\n", "tok": "from-a-file", "bottle.yaml": strings.ReplaceAll(manifest, "dev:\n", "dev:\n    image: e2e-all:2\n") + "  all: {bottle: dev}\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(u.dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		u.write(name, text)
		if err := os.Chmod(filepath.Join(u.dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	removeImage(t, "e2e-all:1")
	removeImage(t, "e2e-all:2")
	u = u.with("PASSED=by-name")
	build := func(progress string, more ...string) result {
		t.Helper()
		r := u.bottle(append([]string{"build", "-f", "files/Make.file", "-t", "e2e-all:1", "-t", "e2e-all:2", "--target", "dev", "--progress", progress,
			"--build-arg", "BASE=bottle-demo:latest", "--build-arg", "WORD=given", "--build-arg", "PASSED", "--label", "given=label",
			"--secret", "id=file,src=tok", "--secret", "id=value,env=TEST_KEY", "--build-context", "more=more", "img"}, more...)...)
		if r.code != 0 {
			t.Fatalf("exit %d:\n%s", r.code, r.stderr)
		}
		return r
	}
	ran := func(caches string) (random string) {
		t.Helper()
		lines := strings.Split(strings.TrimSuffix(u.run("all").stdout, "\n"), "\n")
		want := strings.Split("given by-name\nheredoc\n"+sumFile+"\n"+sumVariable+"\n"+caches+"given\nnamed\nRANDOM\nnamed\ngiven kept.log\ngreen\n1000", "\n")
		if len(lines) != len(want) {
			t.Fatalf("it printed %q, want %q", lines, want)
		}
		for i := range want {
			if want[i] == "RANDOM" {
				random = lines[i]
			} else if lines[i] != want[i] {
				t.Errorf("line %d is %q, want %q", i+1, lines[i], want[i])
			}
		}
		return random
	}
	first := build("plain")
	if !strings.Contains(first.stderr, "RUN --mount=type=bind") {
		t.Errorf("plain progress:\n%s", first.stderr)
	}
	random := ran("once\n")
	if again := build("rawjson"); again.stdout != first.stdout || !strings.Contains(again.stderr, `"cached":true`) {
		t.Errorf("a second build made %q, the first %q; it says\n%s", again.stdout, first.stdout, again.stderr)
	}
	if r := build("quiet", "--no-cache"); r.stderr != "" {
		t.Errorf("a quiet build prints %q", r.stderr)
	}
	if r := ran("once\n"); r == random || r == "" {
		t.Errorf("--no-cache gave %q, before that %q", r, random)
	}
	tree, err := exec.Command("ctr", "images", "inspect", "docker.io/library/e2e-all:1").Output()
	_, rest, _ := strings.Cut(string(tree), "image.config.v1+json @")
	config, cerr := exec.Command("ctr", "content", "get", strings.Fields(rest + " none")[0]).Output()
	if err != nil || cerr != nil || !strings.Contains(string(config), `"given":"label"`) || !strings.Contains(string(config), `"made":"here"`) {
		t.Errorf("%v, %v; the configuration is %s", err, cerr, config)
	}
	if r := u.bottle("build", "-q", "-f", "files/Make.file", "--target", "unused", "img"); r.code != 125 || !strings.Contains(r.stderr, "RUN exit 1") {
		t.Errorf("another stage: exit %d\n%s", r.code, r.stderr)
	}
}

// TestBuildContexts builds contexts in an archive at a URL, in a git repository,
// and on standard input.
func TestBuildContexts(t *testing.T) {
	u := newBuilder(t)
	u.dockerfile("FROM scratch\nCOPY given /\n")
	u.write("img/given", "x")
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = filepath.Join(u.dir, "img")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, out)
		}
	}
	served := t.TempDir()
	run("tar", "-cf", filepath.Join(served, "context.tar"), "Dockerfile", "given")
	run("git", "init", "-q", "-b", "main")
	run("git", "add", ".")
	run("git", "-c", "user.name=A Person", "-c", "user.email=a@example.com", "commit", "-qm", "first")
	run("git", "clone", "-q", "--bare", ".", filepath.Join(served, "context.git"))
	run("git", "-C", filepath.Join(served, "context.git"), "update-server-info")
	server := httptest.NewServer(http.FileServer(http.Dir(served)))
	defer server.Close()
	for _, at := range []string{"/context.tar", "/context.git", "/context.git#main"} {
		r := u.bottle("build", "-q", "--network", "host", server.URL+at) // on the host's loopback interface
		if r.code != 0 {
			t.Errorf("%s: exit %d\n%s", at, r.code, r.stderr)
		}
	}
	if r := u.bottle("build", "-q", server.URL+"/context.tar"); r.code != 125 || !strings.Contains(r.stderr, "The build's proxy refused "+server.URL+"/context.tar") {
		t.Errorf("loopback without the host's network: exit %d\n%s", r.code, r.stderr)
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	oneLine(t, u.with("SSH_AUTH_SOCK="+serveAgent(t, key)).bottle("build", "-q", "--ssh", "default", "ssh://git@ssh.allowed.test/demo.git"),
		"transport 'ssh' not allowed", "use https")
	if r := u.bottle("build", "-q", server.URL+"/none.git"); r.code != 125 || !strings.Contains(r.stderr, "none.git") {
		t.Errorf("exit %d\n%s", r.code, r.stderr)
	}
	in := u.says("FROM bottle-demo:latest\nRUN echo made\n")
	if r := in.bottle("build", "--progress", "plain", "-"); r.code != 0 || !strings.Contains(r.stderr, "RUN echo made") {
		t.Errorf("standard input: exit %d\n%s", r.code, r.stderr)
	}
	in = u.says("FROM scratch\nCOPY given /\n")
	if r := in.bottle("build", "-q", "-f", "-", "img"); r.code != 0 {
		t.Errorf("standard input with a directory: exit %d\n%s", r.code, r.stderr)
	}
	for _, archive := range [][]string{{"-c"}, {"-cz"}} {
		run("tar", append(archive, "-f", filepath.Join(served, "stdin"), "Dockerfile", "given", "--transform=s,^Dockerfile,sub/&,")...)
		data, err := os.ReadFile(filepath.Join(served, "stdin"))
		if err != nil {
			t.Fatal(err)
		}
		if r := u.says(string(data)).bottle("build", "-q", "-f", "sub/Dockerfile", "-"); r.code != 0 {
			t.Errorf("tar %s on standard input: exit %d\n%s", archive, r.code, r.stderr)
		}
		if r := u.says(string(data)).bottle("build", "-q", "-"); r.code != 125 || !strings.Contains(r.stderr, "Dockerfile: no such file") {
			t.Errorf("archive without Dockerfile: exit %d\n%s", r.code, r.stderr)
		}
	}
	oneLine(t, u.says("FROM scratch\n").bottle("build", "-f", "sub/Dockerfile", "-"), "not a tar archive")
	oneLine(t, u.says("FROM scratch\n").bottle("build", "-f", "-", "-"), "both be on standard input")
	oneLine(t, u.says("").bottle("build", "-"), "invalid Dockerfile on standard input")
	oneLine(t, u.bottle("build", "--build-context", "more", "img"), `invalid --build-context "more"`, "NAME=DIRECTORY")
	oneLine(t, u.bottle("build", "-q", "--build-context", "more=nowhere", "img"), "nowhere")
}

// TestBuildKilled kills a build in the middle of a step. The step goes on, as
// containerd runs it, until the next build ends it.
func TestBuildKilled(t *testing.T) {
	u := newBuilder(t)
	const other = "FROM bottle-demo:latest\nRUN true\n"
	u.dockerfile(other)
	if r := u.bottle("build", "-q", "img"); r.code != 0 {
		t.Fatalf("exit %d:\n%s", r.code, r.stderr)
	}
	u.dockerfile("FROM bottle-demo:latest\nRUN --mount=type=secret,id=tok dd if=/dev/zero of=/tmp/zeros bs=1M count=37 2>/dev/null && echo begun && sleep 987654\n")
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
	const written = "37.0 MiB"
	if list := snapshots(t); !strings.Contains(list, written) {
		t.Fatalf("what the step has written is not there, so that the test shows nothing:\n%s", list)
	}
	// A build without steps of its own.
	u.dockerfile(other)
	if r := u.bottle("build", "-q", "img"); r.code != 0 {
		t.Fatalf("exit %d:\n%s", r.code, r.stderr)
	}
	if runs(t, "sleep 987654") {
		t.Error("the killed build's step still runs")
	}
	if list := snapshots(t); strings.Contains(list, written) {
		t.Errorf("what the killed build's step has written is still there:\n%s", list)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(info, []byte("/.build/")) {
		t.Errorf("mounts are left, %v:\n%s", err, info)
	}
}

// snapshots lists how much each snapshot holds. They are asked for one by one, as
// containerd may be collecting some that another test has given up.
func snapshots(t *testing.T) string {
	t.Helper()
	list, err := exec.Command("ctr", "snapshots", "ls").Output()
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for _, line := range strings.Split(strings.TrimSpace(string(list)), "\n")[1:] { // behind the heading
		usage, err := exec.Command("ctr", "snapshots", "usage", strings.Fields(line)[0]).CombinedOutput()
		switch {
		case err == nil:
			out.Write(usage)
		case !bytes.Contains(usage, []byte("not found")) && !bytes.Contains(usage, []byte("no such file")):
			t.Fatalf("%v: %s", err, usage)
		}
	}
	return out.String()
}

// runs reports whether a process has this command line.
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

// TestConcurrentBuilds checks that one of two builds waits and reports it; both succeed.
func TestConcurrentBuilds(t *testing.T) {
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
		waited += strings.Count(r.stderr, "Waiting for another build")
	}
	if waited != 1 {
		t.Errorf("%d of two builds waited", waited)
	}
}

// TestBuildFullStore: containerd's store is on a disk that is too small for the
// context, for what a step writes, or for its layer. Such a build leaves no image,
// and a smaller one afterwards succeeds.
func TestBuildFullStore(t *testing.T) {
	u := newBuilder(t)
	address, _ := labtest.SmallContainerd(t, 64<<20)
	archive := filepath.Join(u.dir, "base.tar")
	ctr(t, "images", "export", archive, demoImage)
	ctr(t, "--address", address, "images", "import", "--local", archive)
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	u = u.with("CONTAINERD_ADDRESS=" + address)
	t.Cleanup(func() { u.bottle("build", "--prune").want(t, 0, "") })
	for _, c := range []struct{ name, dockerfile, says string }{
		{"context", "FROM scratch\nCOPY noise /\n", "no space left on disk"},
		// The program of the step reports it.
		{"step", "FROM bottle-demo:latest\nRUN dd if=/dev/zero of=/tmp/zeros bs=1M count=128\n", "No space left on device"},
		{"layer", "FROM bottle-demo:latest\nRUN dd if=/dev/urandom of=/tmp/noise bs=1M count=20\n", "no space left on disk"},
	} {
		t.Run(c.name, func(t *testing.T) {
			u.dockerfile(c.dockerfile)
			noise := make([]byte, 64<<20)
			_, _ = rand.Read(noise) // never fails
			u.write("img/noise", string(noise))
			r := u.bottle("build", "--progress", "plain", "-t", "e2e-full:1", "img")
			if r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, c.says) {
				t.Errorf("exit %d:\n%s", r.code, r.stderr)
			}
			u.write("img/noise", "")
			u.dockerfile("FROM bottle-demo:latest\nCOPY noise /\nRUN echo good >/tmp/good\n")
			if r := u.bottle("build", "--progress", "plain", "-t", "e2e-full:2", "img"); r.code != 0 {
				t.Errorf("a build that fits: exit %d:\n%s", r.code, r.stderr)
			}
			list := u.bottle("images")
			if list.code != 0 || strings.Contains(list.stdout, "e2e-full:1") || !strings.Contains(list.stdout, "e2e-full:2") {
				t.Errorf("exit %d, images:\n%s%s", list.code, list.stdout, list.stderr)
			}
			if r := u.bottle("rmi", "e2e-full:2"); r.code != 0 {
				t.Error(r.stderr)
			}
		})
	}
}

// TestBuildMistakes checks that each mistake is one error with a hint.
func TestBuildMistakes(t *testing.T) {
	u := newBuilder(t)
	u.dockerfile("FROM scratch\n\nCOPPY a /\n")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-q", "img"}, "Dockerfile:3: COPPY a /"},
		{[]string{}, "expected exactly one build context\nhint: bottle build -t NAME CONTEXT"},
		{[]string{"-q", "nowhere"}, "nowhere/Dockerfile"},
		{[]string{"--progress", "loud", "img"}, `invalid --progress "loud"`},
		{[]string{"--secret", "id=x,env=NOT_SET", "img"}, "NOT_SET is not set"},
		{[]string{"--secret", "src=tok", "img"}, "invalid --secret\nhint: id=ID"},
		{[]string{"--cache-size", "much", "img"}, `invalid cache size "much"`},
		{[]string{"-t", "No Name", "img"}, "invalid image name"},
		{[]string{"--prune", "img"}, "--prune takes no build context"},
	} {
		r := u.bottle(append([]string{"build"}, c.args...)...)
		if r.code != 125 || r.stdout != "" || !strings.Contains(r.stderr, c.want) || !isOneError(r.stderr) {
			t.Errorf("%q: exit %d, %q, want %q", c.args, r.code, r.stderr, c.want)
		}
	}
}
