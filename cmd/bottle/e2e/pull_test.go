package e2e

import (
	"archive/tar"
	"crypto/rand"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestPullPolicies uses a local image and another one of the same name at its
// registry.
func TestPullPolicies(t *testing.T) {
	u := newBuilder(t)
	r := labtest.PlainRegistry(t)
	ref := r.Host + "/policy:1"
	build := func(version string) {
		t.Helper()
		u.dockerfile("FROM bottle-demo:latest\nENV VERSION=" + version + "\n")
		u.bottle("build", "--quiet", "-t", ref, "img")
	}
	build("there")
	u.bottle("push", "-q", ref).want(t, 0, "")
	build("here")
	t.Cleanup(func() { u.bottle("rmi", ref) })
	u = u.with("CLAUDE_BOTTLE_IMAGE=" + ref)
	run := func(policy ...string) result {
		args := append([]string{"run", "sh", "--proxy", "builtin", "--yes"}, policy...)
		return u.bottle(append(args, "--", "-c", "echo $VERSION")...)
	}
	run("--pull", "never").want(t, 0, "here\n")
	run().want(t, 0, "here\n")
	run("--pull=missing").want(t, 0, "here\n")
	run("--pull", "always").want(t, 0, "there\n")
	u.bottle("rmi", ref).want(t, 0, ref+"\n")
	oneLine(t, run("--pull", "never"), ref, "bottle pull")
	run("--pull", "missing", "-q").want(t, 0, "there\n")
}

// TestPullOnTerminal shows a bar for each layer, in bytes, and keeps the last
// state visible.
func TestPullOnTerminal(t *testing.T) {
	leakcheck.Check(t)
	r := labtest.PlainRegistry(t)
	u := newUser(t)
	ref := r.Host + "/bars:1"
	data := make([]byte, 3e6)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	labtest.PutImage(t, ref, ocispec.ImageConfig{}, map[string][]byte{"data": data})
	u.bottle("push", "-q", ref).want(t, 0, "")
	u.bottle("rmi", ref).want(t, 0, ref+"\n")
	x := u.onTerminal(80, 24, "pull", ref)
	seen := x.until(ref + "@sha256:")
	if code := x.wait(); code != 0 {
		t.Errorf("exit %d", code)
	}
	// 12 digits of the digest, the bar, and 3 MB and a header's bytes.
	if bar := regexp.MustCompile(`[0-9a-f]{12} \[={24}\] +3[.0-9]*MB / 3[.0-9]*MB +done`); !bar.MatchString(seen) {
		t.Errorf("the screen was\n%q", seen)
	}
}

// TestImagesColumns checks the columns: name, size, age, and the bottles that use it.
func TestImagesColumns(t *testing.T) {
	leakcheck.Check(t)
	const name = "docker.io/library/bottle-e2e:listed"
	data := make([]byte, 5e6)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	digest := labtest.PutImage(t, name, ocispec.ImageConfig{}, map[string][]byte{"data": data})
	u := newUser(t)
	var lines []string
	for line := range strings.Lines(u.bottle("images").stdout) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	if header := strings.Fields(lines[0]); strings.Join(header, " ") != "NAME DIGEST SIZE AGE USED BY" {
		t.Errorf("the columns are %q", lines[0])
	}
	// The newest is first.
	row := regexp.MustCompile(`^bottle-e2e:listed +` + strings.TrimPrefix(digest, "sha256:")[:12] + ` +5(\.\d+)?MB +\d+ ?s\S* +-$`)
	if !row.MatchString(lines[1]) {
		t.Errorf("the row is %q", lines[1])
	}
	l := u.with("CLAUDE_BOTTLE_IMAGE=" + demoImage).start("claude-bottle-e2e-listed")
	if list := u.bottle("images").stdout; !regexp.MustCompile(`(?m)^bottle-demo:latest .* claude-bottle-e2e-listed`).MatchString(list) {
		t.Errorf("the user of the image is not listed:\n%s", list)
	}
	l.end()
}

// TestNoSpace fills containerd's disk during a pull.
func TestNoSpace(t *testing.T) {
	leakcheck.Check(t)
	r := labtest.PlainRegistry(t)
	u := newUser(t)
	ref := r.Host + "/large:1"
	const disk = 48 << 20
	data := make([]byte, disk)
	if _, err := rand.Read(data); err != nil {
		t.Fatal(err)
	}
	labtest.PutImage(t, ref, ocispec.ImageConfig{}, map[string][]byte{"data": data})
	u.bottle("push", "-q", ref).want(t, 0, "")
	address, _ := labtest.SmallContainerd(t, disk)
	u = u.with("CONTAINERD_ADDRESS=" + address)
	oneLine(t, u.bottle("pull", "-q", ref), "no space left", "bottle rmi")
	u.bottle("images", "--json").want(t, 0, "[]\n")
}

// TestEscapingImage pulls, runs and builds on an image with paths that lead out of it.
func TestEscapingImage(t *testing.T) {
	r := labtest.PlainRegistry(t)
	u := newBuilder(t)
	const local = "docker.io/library/bottle-e2e:escaping"
	entry := labtest.Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "../escape", Mode: 0o644}}
	labtest.PutEntries(t, local, ocispec.ImageConfig{User: "1000"}, []labtest.Entry{entry})
	ref := r.Host + "/escaping:1"
	labtest.PutEntries(t, ref, ocispec.ImageConfig{}, []labtest.Entry{entry})
	u.bottle("push", "-q", ref).want(t, 0, "")
	says := []string{"../escape", "escapes the image's root", "use another"}
	oneLine(t, u.bottle("pull", "-q", ref), says...)
	u.dockerfile("FROM bottle-e2e:escaping\nRUN true\n")
	oneLine(t, u.bottle("build", "-q", "-t", "bottle-e2e:on-escaping", "img"), "Dockerfile:2", says[0], says[1])
	u = u.with("CLAUDE_BOTTLE_IMAGE="+local, "CLAUDE_BOTTLE_DERIVED_IMAGE=bottle-e2e:escaping-cwd")
	for _, cwd := range []string{"--cwd-image=false", "--cwd-image"} {
		oneLine(t, u.bottle("run", "sh", "--proxy", "builtin", "--yes", "-q", cwd), says...)
	}
}

// TestCwdNotices checks that files that an image cannot contain and an
// incomplete repository are reported. All other files are in the image.
func TestCwdNotices(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t).with("CLAUDE_BOTTLE_DERIVED_IMAGE=bottle-e2e:notices")
	t.Cleanup(func() { u.bottle("rmi", "bottle-e2e:notices") })
	l, err := net.Listen("unix", filepath.Join(u.dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	if err := unix.Mknod(filepath.Join(u.dir, "device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))); err != nil {
		t.Fatal(err)
	}
	u.write(".git", "gitdir: /elsewhere\n")
	u.write("a \x1b[31m\nname", "text\n")
	if err := os.Symlink("/etc/passwd", filepath.Join(u.dir, "link")); err != nil {
		t.Fatal(err)
	}
	res := u.bottle("run", "sh", "--proxy", "builtin", "--yes", "--cwd-image", "-q", "--", "-c", `ls -A | wc -l; cat a*; readlink link; test ! -e device && test ! -e socket`)
	res.want(t, 0, "5\ntext\n/etc/passwd\n") // a name holds a line break
	for _, want := range []string{"socket is not included: it is a socket", "device is not included: it is a device", "git will not work inside the bottle"} {
		if strings.Count(res.stderr, want) != 1 {
			t.Errorf("standard error does not say %q once:\n%s", want, res.stderr)
		}
	}
}
