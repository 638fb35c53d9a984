package bottle

import (
	"archive/tar"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/plan"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// An image is somebody else's work: bottle, which is root, writes into it before
// the agent's sandbox is there, and takes its user, its variables and its folders
// from it.

const hostileRef = "docker.io/library/hostile:latest"

const hostileManifest = `
version: 1
bottles:
  dev: {image: "hostile:latest", limits: {memory: 512MiB}}
agents:
  it: {bottle: dev, command: [/probe]}
`

// hostileImage has the prober in it, and what a test puts beside that.
func hostileImage(t *testing.T, config ocispec.ImageConfig, entries ...labtest.Entry) {
	t.Helper()
	probe := labtest.Build(t, "github.com/bot-bottle/bottle/scripts/escape")
	if len(config.Env) == 0 {
		config.Env = []string{"HOME=/root"}
	}
	all := []labtest.Entry{
		{Header: tar.Header{Name: "probe", Mode: 0o755, Typeflag: tar.TypeReg}, Data: probe},
		{Header: tar.Header{Name: "tmp/", Mode: 0o1777, Typeflag: tar.TypeDir}},
		{Header: tar.Header{Name: "etc/", Mode: 0o755, Typeflag: tar.TypeDir}},
		{Header: tar.Header{Name: "root/", Mode: 0o700, Typeflag: tar.TypeDir}},
	}
	labtest.PutEntries(t, hostileRef, config, append(all, entries...))
}

func link(name, target string) labtest.Entry {
	return labtest.Entry{Header: tar.Header{Name: name, Linkname: target, Mode: 0o777, Typeflag: tar.TypeSymlink}}
}

// launchHostile launches, and fails where that takes for ever.
func launchHostile(t *testing.T, e *Engine, runtimeName string) (*Bottle, error) {
	t.Helper()
	spec := testSpec(t, hostileManifest)
	spec.Runtime = runtimeName
	plan, err := plan.Prepare(t.Context(), spec, e)
	if err != nil {
		return nil, err
	}
	type launched struct {
		b   *Bottle
		err error
	}
	done := make(chan launched, 1)
	go func() {
		b, err := e.Launch(t.Context(), plan)
		done <- launched{b, err}
	}()
	select {
	case l := <-done:
		return l.b, l.err
	case <-time.After(90 * time.Second):
		t.Fatal("the launch has not ended in 90 seconds")
		return nil, nil
	}
}

// hostFolder is a folder of the host's that links lead to; the listing is what is
// in it.
func hostFolder(t *testing.T) (dir string, listing func() []string) {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "bottle-hostile-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(canaryText), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir, func() (out []string) {
		err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			fi, serr := os.Lstat(path)
			if err = errors.Join(err, serr); err != nil {
				return err
			}
			text := ""
			if fi.Mode().IsRegular() {
				data, rerr := os.ReadFile(path)
				text, err = string(data), rerr
			}
			out = append(out, path+" "+fi.Mode().String()+" "+text)
			return err
		})
		if err != nil {
			t.Error(err)
		}
		return out
	}
}

// TestImageLinks has an image be full of links to a folder of the host's, in
// every place where bottle writes, mounts or begins. None is followed out of the
// image: they lead where they do inside.
func TestImageLinks(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	dir, listing := hostFolder(t)
	before := listing()
	file := dir + "/file"
	for _, tt := range []struct {
		name    string
		entries []labtest.Entry
		config  ocispec.ImageConfig
		refused string // empty: it is launched
	}{
		{name: "files", entries: []labtest.Entry{
			link("etc/hosts", file), link("etc/hostname", "../../../../../.."+file), link("etc/resolv.conf", dir+"/new"),
			link("root/.gitconfig", "nothing"), link(".bottle", dir), link("proc", dir), link("sys", "tmp"), link("dev", "../"+dir),
		}},
		{name: "files that are read", entries: []labtest.Entry{
			link("etc/passwd", file), link("etc/group", "../../../../../.."+file), link("root/.gitconfig", file), link("root/.claude.json", dir+"/none"),
		}},
		{name: "a folder that is written to", entries: []labtest.Entry{link("root/.claude", dir)}},
		{name: "a home", config: ocispec.ImageConfig{Env: []string{"HOME=/home"}}, entries: []labtest.Entry{link("home", dir)}},
		{name: "a folder above", entries: []labtest.Entry{link("root/.claude", "../../../../../../.."+dir)}},
		{name: "links without an end", entries: []labtest.Entry{link("root/.claude", "/root/b"), link("root/b", ".claude")}, refused: "/root/.claude"},
		{name: "a folder to begin in", config: ocispec.ImageConfig{WorkingDir: "/work/deeper"}, entries: []labtest.Entry{link("work", dir)}},
		{name: "a descriptor to begin in", config: ocispec.ImageConfig{WorkingDir: "/proc/self/fd/7"}},
		{name: "a link to a descriptor to begin in", config: ocispec.ImageConfig{WorkingDir: "/work"}, entries: []labtest.Entry{link("work", "/proc/self/fd/8")}},
	} {
		for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
			t.Run(tt.name+" under "+runtimeName, func(t *testing.T) {
				hostileImage(t, tt.config, tt.entries...)
				b, err := launchHostile(t, e, runtimeName)
				if b != nil {
					defer remove(t, b)
				}
				switch {
				case tt.refused != "":
					if err == nil || !strings.Contains(err.Error(), tt.refused) {
						t.Errorf("got %v, want a refusal that names %s", err, tt.refused)
					}
				case err != nil:
					t.Errorf("it is not launched: %v", err)
				default:
					insideHostile(t, e, b.Name, dir)
				}
				if after := listing(); !slices.Equal(before, after) {
					t.Errorf("the host's folder was\n%q and is\n%q", before, after)
				}
			})
		}
	}
	t.Run("a home elsewhere", func(t *testing.T) {
		data := labtest.Entry{Header: tar.Header{Name: "data/", Mode: 0o755, Typeflag: tar.TypeDir}}
		hostileImage(t, ocispec.ImageConfig{Env: []string{"HOME=/home/me"}}, data, link("home", "/data"))
		b, err := launchHostile(t, e, runtime.RuntimeRunc)
		if err != nil {
			t.Fatal(err)
		}
		defer remove(t, b)
		if out, code := output(t, e, b.Name, "/probe", "cat", "/data/me/.gitconfig"); code != 0 || !strings.Contains(out, "[safe]") {
			t.Errorf("what is behind an absolute link of the image's: exit %d: %s", code, out)
		}
	})
	// The control: the links lead there for who follows them.
	at := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, at); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at+"/new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(before, listing()) {
		t.Error("nothing is written through a link, so that the test shows nothing")
	}
}

// insideHostile looks at an image's bottle from inside: bottle's folder and the
// kernel's file systems are where they belong, and the folder that it begins in
// is none of the host's.
func insideHostile(t *testing.T, e *Engine, name, dir string) {
	t.Helper()
	out, code := output(t, e, name, "/probe", "ls", "/.bottle", "/proc", "/sys", "/dev", dir, ".")
	lines := slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool {
		return strings.HasPrefix(line, "bottle: change to directory ") // where it cannot
	})
	if code != 0 || len(lines) < 6 {
		t.Fatalf("exit %d: %s", code, out)
	}
	for i, place := range []string{"/.bottle", "/proc", "/sys", "/dev"} {
		if !strings.HasPrefix(lines[i], place+" d") {
			t.Errorf("%s inside: %s", place, lines[i])
		}
	}
	if strings.Contains(lines[4], "[file") {
		t.Errorf("the host's folder inside: %s", lines[4])
	}
	if strings.Contains(lines[5], "memory") || strings.Contains(lines[5], "cgroup") {
		t.Errorf("it begins in a folder of the host's: %s", lines[5])
	}
}

// TestImageSpecials has an image hold no file where one is read: a FIFO, which
// nobody writes to, and devices of the host's. Nothing of that is opened.
func TestImageSpecials(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	fifo := func(name string) labtest.Entry {
		return labtest.Entry{Header: tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeFifo}}
	}
	device := func(name string, major, minor int64) labtest.Entry {
		return labtest.Entry{Header: tar.Header{Name: name, Mode: 0o666, Typeflag: tar.TypeChar, Devmajor: major, Devminor: minor}}
	}
	for _, tt := range []struct {
		entries []labtest.Entry
		want    string
	}{
		{[]labtest.Entry{fifo("etc/passwd")}, "/etc/passwd"},
		{[]labtest.Entry{fifo("etc/group")}, "/etc/group"},
		{[]labtest.Entry{fifo("run/f"), link("etc/passwd", "../run/f")}, "/etc/passwd"},
		{[]labtest.Entry{device("etc/passwd", 1, 5)}, "/etc/passwd"}, // zero(4), without an end
		{[]labtest.Entry{device("etc/group", 5, 2)}, "/etc/group"},   // ptmx(4), which makes something
		{[]labtest.Entry{fifo("root/.gitconfig")}, "/root/.gitconfig"},
		{[]labtest.Entry{device("root/.claude.json", 1, 5)}, "/root/.claude.json"},
	} {
		last := tt.entries[len(tt.entries)-1]
		t.Run(last.Name+" "+string(last.Typeflag), func(t *testing.T) {
			hostileImage(t, ocispec.ImageConfig{}, tt.entries...)
			b, err := launchHostile(t, e, runtime.RuntimeRunsc)
			if b != nil {
				remove(t, b)
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("got %v, want one that names %s", err, tt.want)
			}
		})
	}
}

// TestImageConfigs has an image say of itself what no image should. It is refused
// in a line, or does no harm.
func TestImageConfigs(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	long := strings.Repeat("x", 300<<10) // more than the kernel takes of one text (execve(2))
	for _, tt := range []struct {
		name    string
		config  ocispec.ImageConfig
		refused string // empty: it is launched
	}{
		{name: "a user of control characters", config: ocispec.ImageConfig{User: "a\x1b[2Kb"}, refused: "user not found in the image"},
		{name: "a user that is too large", config: ocispec.ImageConfig{User: "4294967296:0"}, refused: "user"},
		{name: "a user below zero", config: ocispec.ImageConfig{User: "-1"}, refused: "user"},
		{name: "a large variable", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "LARGE=" + long}}, refused: "too long"},
		{name: "a variable that just fits", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "L=" + long[:128<<10-3]}}},
		{name: "a NUL in a variable", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "A=b\x00HTTPS_PROXY=http://evil.test"}}, refused: "NUL"},
		{name: "variables that are none", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "", "=x", "NOTHING", "A\nB=c"}}},
		{name: "proxies of its own", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "HTTPS_PROXY=http://evil.test", "no_proxy=*"}}},
		{name: "a library for all programs", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "LD_PRELOAD=/evil.so", "GODEBUG=x", "GOTRACEBACK=crash"}}},
		{name: "a home that is none", config: ocispec.ImageConfig{Env: []string{"HOME=../../../run"}}},
		{name: "bottle's folder as its home", config: ocispec.ImageConfig{Env: []string{"HOME=/.bottle"}}},
		{name: "a large label", config: ocispec.ImageConfig{Labels: map[string]string{"x": long, "bottle.role": "proxy"}}},
		{name: "a large command", config: ocispec.ImageConfig{Entrypoint: []string{"/probe", long}}},
	} {
		for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
			t.Run(tt.name+" under "+runtimeName, func(t *testing.T) {
				hostileImage(t, tt.config)
				b, err := launchHostile(t, e, runtimeName)
				if b != nil {
					defer remove(t, b)
				}
				if tt.refused != "" {
					if err == nil || !strings.Contains(err.Error(), tt.refused) {
						t.Errorf("got %v, want a refusal with %q", err, tt.refused)
					}
					return
				}
				if err != nil {
					t.Fatalf("it is not launched: %v", err)
				}
				out, code := output(t, e, b.Name, "/probe", "cat", "/proc/self/environ")
				if code != 0 || !strings.Contains(out, "HTTPS_PROXY="+segment.ProxyURL()+"\x00") || strings.Contains(out, "evil.test") || strings.Contains(out, "no_proxy=*") {
					t.Errorf("exit %d: %q", code, out)
				}
			})
		}
	}
}
