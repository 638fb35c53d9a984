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

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
)

// An image is not trusted: bottle, running as root, writes into it before the agent's
// sandbox exists, and takes its user, variables and directories from it.

const hostileRef = "docker.io/library/hostile:latest"

const hostileManifest = `
version: 1
bottles:
  dev: {image: "hostile:latest", limits: {memory: 512MiB}}
agents:
  it: {bottle: dev, command: [/probe]}
`

// hostileImage creates an image that contains the prober and the given entries.
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

func symlink(name, target string) labtest.Entry {
	return labtest.Entry{Header: tar.Header{Name: name, Linkname: target, Mode: 0o777, Typeflag: tar.TypeSymlink}}
}

// launchHostile launches that image's bottle and fails if it does not return.
func launchHostile(t *testing.T, e *Engine, runtimeName string) (*Bottle, error) {
	t.Helper()
	spec := testSpec(t, hostileManifest)
	spec.Runtime = runtimeName
	return launchWithin(t, e, spec)
}

// claimHostile is launchHostile for a prepared bottle.
func claimHostile(t *testing.T, e *Engine, runtimeName string) (*Bottle, error) {
	t.Helper()
	spec := testSpec(t, strings.Replace(hostileManifest, "command: [/probe]", "command: [/probe], pool: 1", 1))
	spec.Runtime = runtimeName
	ahead := spec
	ahead.NamesOnly = true
	names := fill(t, e, prepare(t, e, ahead), 1)
	b, err := launchWithin(t, e, spec)
	if err == nil && b.Name != names[0] {
		t.Errorf("%s runs, prepared: %v", b.Name, names)
	}
	return b, err
}

// launchWithin launches the bottle of a spec and fails if it does not return.
func launchWithin(t *testing.T, e *Engine, spec plan.Spec) (*Bottle, error) {
	t.Helper()
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
		t.Fatal("the launch did not return within 90 seconds")
		return nil, nil
	}
}

// hostDir returns a directory on the host that links refer to, and a function that lists
// its contents.
func hostDir(t *testing.T) (dir string, listing func() []string) {
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

// TestImageLinks launches images with links to a directory on the host, in every place
// where bottle writes, mounts or starts a process. No link is followed out of the image:
// it is resolved with the image as root.
func TestImageLinks(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	dir, listing := hostDir(t)
	before := listing()
	file := dir + "/file"
	for _, tt := range []struct {
		name    string
		entries []labtest.Entry
		config  ocispec.ImageConfig
		refused string // empty: the launch succeeds
	}{
		{name: "files", entries: []labtest.Entry{
			symlink("etc/hosts", file), symlink("etc/hostname", "../../../../../.."+file), symlink("etc/resolv.conf", dir+"/new"),
			symlink("root/.gitconfig", "nothing"), symlink(".bottle", dir), symlink("proc", dir), symlink("sys", "tmp"), symlink("dev", "../"+dir),
		}},
		{name: "files that are read", entries: []labtest.Entry{
			symlink("etc/passwd", file), symlink("etc/group", "../../../../../.."+file), symlink("root/.gitconfig", file), symlink("root/.claude.json", dir+"/none"),
		}},
		{name: "a directory that is written to", entries: []labtest.Entry{symlink("root/.claude", dir)}},
		{name: "a home", config: ocispec.ImageConfig{Env: []string{"HOME=/home"}}, entries: []labtest.Entry{symlink("home", dir)}},
		{name: "a relative link", entries: []labtest.Entry{symlink("root/.claude", "../../../../../../.."+dir)}},
		{name: "a loop of links", entries: []labtest.Entry{symlink("root/.claude", "/root/b"), symlink("root/b", ".claude")}, refused: "/root/.claude"},
		{name: "a working directory", config: ocispec.ImageConfig{WorkingDir: "/work/deeper"}, entries: []labtest.Entry{symlink("work", dir)}},
		{name: "a descriptor as working directory", config: ocispec.ImageConfig{WorkingDir: "/proc/self/fd/7"}},
		{name: "a link to a descriptor as working directory", config: ocispec.ImageConfig{WorkingDir: "/work"}, entries: []labtest.Entry{symlink("work", "/proc/self/fd/8")}},
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
						t.Errorf("got %v, want an error with %s", err, tt.refused)
					}
				case err != nil:
					t.Errorf("launch: %v", err)
				default:
					checkHostile(t, e, b.Name, dir)
				}
				if after := listing(); !slices.Equal(before, after) {
					t.Errorf("the host's directory has changed from\n%q to\n%q", before, after)
				}
			})
		}
	}
	t.Run("a home elsewhere", func(t *testing.T) {
		data := labtest.Entry{Header: tar.Header{Name: "data/", Mode: 0o755, Typeflag: tar.TypeDir}}
		hostileImage(t, ocispec.ImageConfig{Env: []string{"HOME=/home/me"}}, data, symlink("home", "/data"))
		b, err := launchHostile(t, e, runtime.RuntimeRunc)
		if err != nil {
			t.Fatal(err)
		}
		defer remove(t, b)
		if out, code := output(t, e, b.Name, "/probe", "cat", "/data/me/.gitconfig"); code != 0 || !strings.Contains(out, "[safe]") {
			t.Errorf("file behind an absolute link of the image: exit %d: %s", code, out)
		}
	})
	// The control: following such a link on the host leads to the directory.
	at := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, at); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at+"/new", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(before, listing()) {
		t.Error("invalid test: nothing was written through a link")
	}
}

// checkHostile checks a hostile image's bottle from inside: bottle's directory and the
// kernel's file systems are mounted, and the working directory is not on the host.
func checkHostile(t *testing.T, e *Engine, name, dir string) {
	t.Helper()
	out, code := output(t, e, name, "/probe", "ls", "/.bottle", "/proc", "/sys", "/dev", dir, ".")
	lines := slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool {
		return strings.HasPrefix(line, "bottle: change to directory ") // printed if it cannot
	})
	if code != 0 || len(lines) < 6 {
		t.Fatalf("exit %d: %s", code, out)
	}
	for i, place := range []string{"/.bottle", "/proc", "/sys", "/dev"} {
		if !strings.HasPrefix(lines[i], place+" d") {
			t.Errorf("%s in the sandbox: %s", place, lines[i])
		}
	}
	if strings.Contains(lines[4], "[file") {
		t.Errorf("the host's directory in the sandbox: %s", lines[4])
	}
	if strings.Contains(lines[5], "memory") || strings.Contains(lines[5], "cgroup") {
		t.Errorf("the working directory is on the host: %s", lines[5])
	}
}

// TestImageSpecials launches images with a FIFO or a device of the host in place of a file
// that bottle reads. None of them is opened.
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
		{[]labtest.Entry{fifo("run/f"), symlink("etc/passwd", "../run/f")}, "/etc/passwd"},
		{[]labtest.Entry{device("etc/passwd", 1, 5)}, "/etc/passwd"}, // zero(4), which never ends
		{[]labtest.Entry{device("etc/group", 5, 2)}, "/etc/group"},   // ptmx(4), which creates a terminal
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
				t.Errorf("got %v, want an error with %s", err, tt.want)
			}
		})
	}
}

// TestImageConfigs launches images with invalid or hostile configurations. They are
// refused with an error, or have no effect.
func TestImageConfigs(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	long := strings.Repeat("x", 300<<10) // above the kernel's limit for one string (execve(2))
	for _, tt := range []struct {
		name    string
		config  ocispec.ImageConfig
		refused string // empty: the launch succeeds
	}{
		{name: "a user with control characters", config: ocispec.ImageConfig{User: "a\x1b[2Kb"}, refused: "user not found in the image"},
		{name: "a user that is too large", config: ocispec.ImageConfig{User: "4294967296:0"}, refused: "user"},
		{name: "a negative user", config: ocispec.ImageConfig{User: "-1"}, refused: "user"},
		{name: "a large variable", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "LARGE=" + long}}, refused: "too long"},
		{name: "a variable at the limit", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "L=" + long[:128<<10-3]}}},
		{name: "a NUL in a variable", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "A=b\x00HTTPS_PROXY=http://evil.test"}}, refused: "NUL"},
		{name: "invalid variables", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "", "=x", "NOTHING", "A\nB=c"}}},
		{name: "proxies of its own", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "HTTPS_PROXY=http://evil.test", "no_proxy=*"}}},
		{name: "a preloaded library", config: ocispec.ImageConfig{Env: []string{"HOME=/root", "LD_PRELOAD=/evil.so", "GODEBUG=x", "GOTRACEBACK=crash"}}},
		{name: "an invalid home", config: ocispec.ImageConfig{Env: []string{"HOME=../../../run"}}},
		{name: "bottle's directory as home", config: ocispec.ImageConfig{Env: []string{"HOME=/.bottle"}}},
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
						t.Errorf("got %v, want an error with %q", err, tt.refused)
					}
					return
				}
				if err != nil {
					t.Fatalf("launch: %v", err)
				}
				out, code := output(t, e, b.Name, "/probe", "cat", "/proc/self/environ")
				if code != 0 || !strings.Contains(out, "HTTPS_PROXY="+segment.ProxyURL()+"\x00") || strings.Contains(out, "evil.test") || strings.Contains(out, "no_proxy=*") {
					t.Errorf("exit %d: %q", code, out)
				}
			})
		}
	}
}
