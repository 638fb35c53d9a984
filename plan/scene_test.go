package plan

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

// claude is the default kind, and defaultRef its image.
var claude = agents.Get(agents.Default)

const defaultRef = "docker.io/library/claude-bottle:latest"

// fakeHost returns fixed answers. The real implementation is tested with containerd.
type fakeHost struct {
	taken                         map[string]bool
	images                        map[string]ImageInfo
	takenErr, runtimeErr, network error
	warnings, workspace           []string
	runtime                       func(name string) error // replaces runtimeErr
	prepared                      string
}

func (h *fakeHost) Prepared(context.Context, *Plan) (string, error) { return h.prepared, nil }

func (h *fakeHost) Taken(context.Context) (map[string]bool, error) { return h.taken, h.takenErr }

func (h *fakeHost) Image(_ context.Context, ref string) (ImageInfo, error) {
	info, ok := h.images[ref]
	if !ok {
		return ImageInfo{}, ErrImageMissing
	}
	return info, nil
}

func (h *fakeHost) Runtime(_ context.Context, name string) error {
	if h.runtime != nil {
		return h.runtime(name)
	}
	return h.runtimeErr
}

func (h *fakeHost) Network(context.Context) (Network, error) {
	return Network{Internal: "10.77.0.0/30", Egress: "10.210.0.0/16", Bridge: "bottle0", Warnings: h.warnings}, h.network
}

func (h *fakeHost) Workspace(context.Context, int64) ([]string, error) { return h.workspace, nil }

// scene is a caller with a home and a working directory, a manifest and a host.
type scene struct {
	t    *testing.T
	host *fakeHost
	env  map[string]string
	spec Spec
}

// newScene returns a scene whose manifest has an agent impl in a bottle dev, with the
// settings in YAML's flow style.
func newScene(t *testing.T, bottle, agent string) *scene {
	t.Helper()
	if agent != "" {
		agent = ", " + agent
	}
	return sceneOf(t, fmt.Sprintf("version: 1\nbottles:\n  dev: {%s}\nagents:\n  impl: {bottle: dev%s}\n", bottle, agent))
}

func sceneOf(t *testing.T, file string) *scene {
	t.Helper()
	root := t.TempDir()
	// Some tests run as another user, who must be able to enter the directories.
	for _, dir := range []string{root, filepath.Dir(root)} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := &scene{t: t, env: map[string]string{}, host: &fakeHost{images: map[string]ImageInfo{
		defaultRef: {Ref: defaultRef, Cmd: []string{"claude"}, User: "node"},
	}}}
	s.spec = Spec{Agent: "impl", Proxy: manifest.ProxyBuiltin, Caller: caller.Caller{
		Getenv:  func(name string) (string, bool) { v, ok := s.env[name]; return v, ok },
		WorkDir: filepath.Join(root, "work"), Home: filepath.Join(root, "home"), UID: os.Getuid(), GID: os.Getgid(),
	}}
	s.write("work/bottle.yaml", file, 0o644)
	s.mkdir("home/.claude/skills")
	return s
}

func (s *scene) path(name string) string {
	return filepath.Join(filepath.Dir(s.spec.Caller.Home), name)
}

func (s *scene) mkdir(name string) {
	s.t.Helper()
	if err := os.MkdirAll(s.path(name), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) write(name, text string, mode os.FileMode) {
	s.t.Helper()
	s.mkdir(filepath.Dir(name))
	if err := os.WriteFile(s.path(name), []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(s.path(name), mode); err != nil {
		s.t.Fatal(err)
	}
}

// listing returns all paths of the scene with the attributes that show a change.
func (s *scene) listing() []string {
	s.t.Helper()
	var out []string
	err := filepath.WalkDir(s.path("."), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err == nil {
			out = append(out, fmt.Sprint(path, fi.Mode(), fi.Size(), fi.ModTime()))
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// prepare calls Prepare and checks that it creates no files and that errors contain no
// secret values.
func (s *scene) prepare() (*Plan, error) {
	s.t.Helper()
	before := s.listing()
	plan, err := Prepare(context.Background(), s.spec, s.host)
	if after := s.listing(); !slices.Equal(before, after) {
		s.t.Errorf("Prepare changed files:\nbefore %q\nafter %q", before, after)
	}
	if (plan == nil) == (err == nil) {
		s.t.Fatalf("plan %v and error %v", plan, err)
	}
	for _, e := range hint.Split(err) {
		if text := e.Error() + hint.Of(e); secrets.MatchString(text) || strings.Contains(text, "\n") {
			s.t.Errorf("contains a secret value, or more than one line: %s", text)
		}
	}
	return plan, err
}

func (s *scene) good() *Plan {
	s.t.Helper()
	plan, err := s.prepare()
	if err != nil {
		s.t.Fatal(err)
	}
	return plan
}

// bad expects one error that contains all of want in its text and hint.
func (s *scene) bad(want ...string) {
	s.t.Helper()
	_, err := s.prepare()
	if err == nil {
		s.t.Fatalf("no error, want one with %q", want)
	}
	if n := len(hint.Split(err)); n != 1 {
		s.t.Errorf("%d errors, want 1: %v", n, err)
	}
	text := err.Error() + ": " + hint.Of(err)
	for _, w := range want {
		if !strings.Contains(text, w) {
			s.t.Errorf("got %q, want it to contain %q", text, w)
		}
	}
}

// secrets matches the secret values of these tests, also in encoded form.
var secrets = regexp.MustCompile(`(?i)hunter|9182736|aHVudGVy`)
