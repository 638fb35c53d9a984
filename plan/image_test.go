package plan

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/bot-bottle/bottle/provision"
)

func TestPreparePull(t *testing.T) {
	const mine = "docker.io/library/mine:latest"
	for name, c := range map[string]struct {
		policy string
		there  bool
		pull   string
	}{
		"missing":           {"", false, mine},
		"there":             {"", true, ""},
		"named, missing":    {PullMissing, false, mine},
		"always":            {PullAlways, true, mine},
		"always, missing":   {PullAlways, false, mine},
		"never, but there":  {PullNever, true, ""},
		"missing, as there": {PullMissing, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, "image: mine", "command: [run]")
			if s.spec.Pull = c.policy; c.there {
				s.host.images[mine] = ImageInfo{User: "node"}
			}
			got := s.good()
			if got.Pull != c.pull || got.Image != mine || got.ImageCommand {
				t.Errorf("pulls %q for %q", got.Pull, got.Image)
			}
			s.spec.Cwd = true
			if got := s.good(); got.Pull != c.pull || got.BaseRef != mine {
				t.Errorf("with --cwd: pulls %q for base %q", got.Pull, got.BaseRef)
			}
		})
	}
	s := newScene(t, "image: mine", "")
	s.spec.Pull = "sometimes"
	s.bad(`"sometimes"`, "always, missing, never")
	// The default image is built and never pulled.
	s = newScene(t, "", "")
	s.spec.Pull = PullAlways
	if got := s.good(); got.Pull != "" {
		t.Errorf("the default image is pulled: %q", got.Pull)
	}
}

// TestPreparePullCommand checks that the command of an image that is pulled later is
// set after the pull.
func TestPreparePullCommand(t *testing.T) {
	s := newScene(t, "image: mine", "prompt: text")
	s.spec.Args = []string{"-p", "x"}
	plan := s.good()
	if !plan.ImageCommand || plan.Command == nil || len(plan.Command) != 0 {
		t.Fatalf("got %v, %q", plan.ImageCommand, plan.Command)
	}
	if _, err := plan.WithImages(ImageInfo{}, nil); err == nil {
		t.Error("no error for an image without a command")
	}
	done, err := plan.WithImages(ImageInfo{Entrypoint: []string{"claude"}, Cmd: []string{"-c"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"claude", "--append-system-prompt-file", provision.PromptFile, "-c", "-p", "x"}; !slices.Equal(done.Command, want) || done.ImageCommand || done.Pull != "" {
		t.Errorf("got %q, want %q", done.Command, want)
	}
}

func TestPrepareCwd(t *testing.T) {
	s := newScene(t, "", "")
	s.spec.Cwd = true
	work := s.spec.Caller.WorkDir
	real, err := filepath.EvalSymlinks(work)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.good(); got.Dir != real || got.Target != "/workspace" {
		t.Errorf("%s at %s", got.Dir, got.Target)
	}
	s.spec.ManifestPath = s.path("work/bottle.yaml")
	for dir, says := range map[string]string{"/": "entire file system", s.spec.Caller.Home: "your home directory", filepath.Dir(s.spec.Caller.Home): "all home directories"} {
		s.spec.Caller.WorkDir = dir
		s.bad(says, dir, "--cwd-force")
		s.spec.CwdForce = true
		s.good()
		s.spec.CwdForce = false
	}
	s.spec.Caller.WorkDir = work
	for _, target := range []string{"rel", "/", "/proc", "/dev/x", "/.bottle", "/a/../.bottle/x", "/a/.."} {
		s.spec.CwdTarget = target
		s.bad(target)
	}
	s.spec.CwdTarget = "/srv/x/"
	if got := s.good(); got.Target != "/srv/x" {
		t.Errorf("got %s", got.Target)
	}
}
