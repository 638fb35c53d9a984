//go:build readme

package readme

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

func TestMain(m *testing.M) { os.Exit(labtest.Main(m)) }

// section returns the commands in a section of README.md: its indented lines, which are not
// in fences.
func section(t *testing.T, heading string) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	if !ok {
		t.Fatalf("README.md has no section %q", heading)
	}
	rest, _, _ = strings.Cut(rest, "\n## ")
	rest = regexp.MustCompile("(?ms)^```.*?^```$").ReplaceAllString(rest, "")
	commands := strings.Join(regexp.MustCompile(`(?m)^    \S.*$`).FindAllString(rest, -1), "\n") + "\n"
	if strings.TrimSpace(commands) == "" {
		t.Fatalf("section %q of README.md has no commands", heading)
	}
	return commands
}

// TestREADME follows README.md on Debian 12 and 13, from an empty server to the work of the
// first agent and back. What a server has from the network is there before: the package, a
// bundle, and the agent's image. The API is the test host's mock.
func TestREADME(t *testing.T) {
	bundle := makeBundle(t)
	for _, suite := range []string{"bookworm", "trixie"} {
		t.Run(suite, func(t *testing.T) {
			leakcheck.Check(t)
			s := boot(t, suite)
			before := s.files()
			s.project(bundle)
			out := s.script("/home/me", section(t, "Install"))
			for line := range strings.Lines(afterCommand(t, out, "sudo bottle doctor")) {
				if !strings.HasPrefix(line, "ok ") {
					t.Errorf("doctor: %s", line)
				}
			}
			if again := s.script("/home/me", "sudo bottle setup --bundle bottle-bundle.tar\n"); !strings.Contains(again, "There is nothing to do.") {
				t.Errorf("a second setup:\n%s", again)
			}
			s.image()
			out = s.script("/home/me/project", section(t, "Your first bottle"))
			if !strings.Contains(out, "TOOL-ROUND-DONE: made-in-bottle") {
				t.Errorf("the agent did not get an answer:\n%s", out)
			}
			if !regexp.MustCompile(`(?m)^  runtime +runsc`).MatchString(out) {
				t.Errorf("the agent did not run under gVisor:\n%s", out)
			}
			if work := s.output("runuser", "-u", "me", "--", "git", "-C", "/home/me/project", "show", "bottle/claude:proof.txt"); work != "made-in-bottle\n" {
				t.Errorf("fetched %q", work)
			}
			out = s.script("/home/me", section(t, "Remove everything"))
			if after := s.files(); !slices.Equal(before, after) {
				t.Errorf("left or removed: %q\n%s", difference(before, after), out)
			}
		})
	}
	t.Run("packages", func(t *testing.T) { hostPackages(t, bundle) })
}

// hostPackages sets Debian 12 up with Debian's own packages, as far as they are suitable: its
// apt takes runc and the CNI plugins from a repository with Debian's packages, and setup takes the
// rest from a bundle, since containerd is too old and gVisor is not in Debian.
func hostPackages(t *testing.T, bundle string) {
	leakcheck.Check(t)
	s := boot(t, "bookworm")
	s.project(bundle)
	s.repository("bookworm")
	s.script("/home/me", "sudo apt-get update\nsudo apt install -y ./bottle_*.deb\n")
	before := s.files()
	out := s.script("/home/me", "sudo bottle setup --packages --bundle bottle-bundle.tar\n")
	if strings.Contains(out, "runc."+runtime.GOARCH) || strings.Contains(out, "cni-plugins-") {
		t.Errorf("a release file instead of a package:\n%s", out)
	}
	out = s.script("/home/me", "sudo bottle setup --packages\nsudo bottle doctor\n")
	if !strings.Contains(out, "There is nothing to do.") {
		t.Errorf("a second setup:\n%s", out)
	}
	for line := range strings.Lines(afterCommand(t, out, "sudo bottle doctor")) {
		if !strings.HasPrefix(line, "ok ") {
			t.Errorf("doctor: %s", line)
		}
	}
	installed := s.output("dpkg-query", "--show", "--showformat", "${binary:Package} ${db:Status-Status}\\n", "runc", "containernetworking-plugins")
	if installed != "containernetworking-plugins installed\nrunc installed\n" && installed != "runc installed\ncontainernetworking-plugins installed\n" {
		t.Errorf("packages: %q", installed)
	}
	out = s.script("/home/me", "sudo bottle setup --undo\n")
	if after := s.files(); !slices.Equal(before, after) {
		t.Errorf("left or removed: %q\n%s", difference(before, after), out)
	}
}

// repository makes a repository with Debian's packages the server's only one. It is trusted, because
// it has no signature of its own; apt verifies the packages with the checksums of Debian's entries.
func (s *server) repository(suite string) {
	s.t.Helper()
	found, err := filepath.Glob(filepath.Join(os.Getenv("LAB_CACHE"), "debian-repository-"+suite+"-*.tar"))
	if err != nil || len(found) != 1 {
		s.t.Fatalf("expected one repository for Debian %s, found %q (scripts/lab up --with-hosts): %v", suite, found, err)
	}
	dir := filepath.Join(s.root, "var/tmp/repository")
	run(s.t, "mkdir", dir)
	run(s.t, "tar", "-C", dir, "-xf", found[0])
	s.write("etc/apt/sources.list", "deb [trusted=yes] file:/var/tmp/repository ./\n", 0o644)
}

// afterCommand returns the output of a command that the shell has shown.
func afterCommand(t *testing.T, out, command string) string {
	t.Helper()
	_, rest, ok := strings.Cut(out, "\n+ "+command+"\n")
	if !ok {
		t.Fatalf("no command %q in\n%s", command, out)
	}
	rest, _, _ = strings.Cut(rest, "\n+ ")
	return rest
}

// project gives the user a package, a bundle and a repository.
func (s *server) project(bundle string) {
	debs, err := filepath.Glob("../../dist/bottle_*_" + runtime.GOARCH + ".deb")
	if err != nil || len(debs) != 1 {
		s.t.Fatalf("expected one package in dist, found %q (make dist): %v", debs, err)
	}
	s.copy(debs[0], "home/me/"+filepath.Base(debs[0]), 0o644)
	s.copy(bundle, "home/me/bottle-bundle.tar", 0o644)
	s.output("runuser", "-u", "me", "--", "sh", "-ec", `git init -q ~/project; cd ~/project; echo hello >hello.txt; git add .; git commit -qm first`)
}

// image imports the image that bottle would build: the lab's image with Claude Code.
func (s *server) image() {
	s.t.Helper()
	marks, err := filepath.Glob(filepath.Join(os.Getenv("LAB_STATE"), "imported/claude-bottle-claude-*.oci.tar"))
	if err != nil || len(marks) != 1 {
		s.t.Fatalf("expected one image with Claude Code, found %q (scripts/lab up --with-claude): %v", marks, err)
	}
	archive, err := os.Open(filepath.Join(os.Getenv("LAB_CACHE"), filepath.Base(marks[0])))
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = archive.Close() }()
	ctr := []string{"/usr/local/lib/bottle/bin/ctr", "--address", "/run/bottle-containerd/containerd.sock", "--namespace", "bottle", "images"}
	cmd := s.command(s.t.Context(), "root", "/", append(ctr, "import", "-")...)
	cmd.Stdin = archive
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("import the image: %v\n%s", err, out)
	}
	s.output(append(ctr, "tag", "docker.io/library/claude-bottle:claude", "docker.io/library/claude-bottle:latest")...)
}

// changing are files that a server changes by itself, or that dpkg keeps about every package.
var changing = []string{
	"./proc/*", "./sys/*", "./dev/*", "./tmp/*", "./var/tmp/*", "./home/me/*", "./var/log/*", "./var/cache/*", "./var/lib/systemd/*",
	"./var/lib/dpkg/*", "./var/lib/apt/*", "./var/lib/sudo/*", "./etc/.pwd.lock", "./run/systemd/*", "./run/udev/*", "./run/sudo/*",
	"./run/user/*", "./run/log/*", "./run/utmp", "./run/dbus/*",
}

// files lists the files of the server, without those that it changes by itself.
func (s *server) files() []string {
	args := []string{"find", "."}
	for _, c := range changing {
		args = append(args, "-path", c, "-prune", "-o")
	}
	return strings.Split(s.output(append(args, "-print")...), "\n")
}

func difference(a, b []string) []string {
	var out []string
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, "-"+x)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			out = append(out, "+"+x)
		}
	}
	return out
}

// makeBundle makes a bundle of the test host's programs, packed as upstream's releases are.
func makeBundle(t *testing.T) string {
	t.Helper()
	dir, arch := t.TempDir(), runtime.GOARCH
	programs := func(names ...string) map[string]string {
		out := map[string]string{}
		for _, name := range names {
			out["bin/"+name] = lookPath(t, name)
		}
		return out
	}
	archive(t, filepath.Join(dir, "containerd-2.4.2-linux-"+arch+".tar.gz"), programs("containerd", "containerd-shim-runc-v2", "ctr"))
	plugins := map[string]string{}
	for _, name := range []string{"bridge", "host-local", "static", "loopback"} {
		plugins["./"+name] = filepath.Join(os.Getenv("CNI_PATH"), name)
	}
	archive(t, filepath.Join(dir, "cni-plugins-linux-"+arch+"-v1.9.1.tgz"), plugins)
	gvisorArchive(t, filepath.Join(dir, "gvisor-"+map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[arch]+".tar.bz2"))
	run(t, "cp", lookPath(t, "runc"), filepath.Join(dir, "runc."+arch))
	sums, err := exec.Command("sh", "-ec", `cd "$1"; sha256sum *`, "sh", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(t.TempDir(), "SHA256SUMS")
	bundle := filepath.Join(t.TempDir(), "bottle-bundle.tar")
	if err := os.WriteFile(list, sums, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(labtest.Program(t), "setup", "--make-bundle", bundle, "--from", dir, "--checksums", list).Output()
	if err != nil {
		t.Fatalf("make a bundle: %v", err)
	}
	data, err := os.ReadFile(bundle)
	if err != nil || string(out) != fmt.Sprintf("%x  %s\n", sha256.Sum256(data), bundle) {
		t.Fatalf("--make-bundle prints %q, %v", out, err)
	}
	return bundle
}

// gvisorArchive packs gVisor as its releases are. The test host's runsc, built from its module, has
// everything in itself and never executes the program that stands for those of gvisor-bin.
func gvisorArchive(t *testing.T, path string) {
	t.Helper()
	dir := t.TempDir()
	run(t, "mkdir", filepath.Join(dir, "gvisor-bin"))
	for from, to := range map[string]string{
		lookPath(t, "runsc"): "runsc", lookPath(t, "containerd-shim-runsc-v1"): "containerd-shim-runsc-v1", "/bin/true": "gvisor-bin/runsc-metric-server",
	} {
		run(t, "cp", from, filepath.Join(dir, to))
	}
	run(t, "tar", "-C", dir, "--use-compress-program", "bzip2 -1", "-cf", path, ".")
}

// archive writes a compressed archive of files by their names in it.
func archive(t *testing.T, path string, files map[string]string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for name, from := range files {
		data, err := os.ReadFile(from)
		if err == nil {
			err = w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg})
		}
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}
