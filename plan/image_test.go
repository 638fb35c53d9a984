package plan

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/manifest"
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
			s.spec.CwdImage = true
			if got := s.good(); got.Pull != c.pull || got.BaseRef != mine {
				t.Errorf("with --cwd-image: pulls %q for base %q", got.Pull, got.BaseRef)
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
	s.spec.CwdImage = true
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

// Files with credentials that --cwd copies are named by the plan, as far as the caller
// may read them.
func TestPrepareCwdCredentials(t *testing.T) {
	s := newScene(t, "", "")
	s.write("work/.env", "A=b", 0o600)
	credentials := func() []string {
		p := s.good()
		return slices.DeleteFunc(slices.Clone(p.Warnings), func(w string) bool { return !strings.Contains(w, "credentials") })
	}
	if got := credentials(); len(got) != 0 {
		t.Errorf("without --cwd: %q", got)
	}
	s.spec.Cwd = true
	if got, want := credentials(), "--cwd copies a file that may hold credentials, .env: exclude what the agent does not need in .bottleignore"; !slices.Equal(got, []string{want}) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, name := range []string{".npmrc", "a/.env", "b/.env", "c/.env", "d/.env"} {
		s.write("work/"+name, "A=b", 0o600)
	}
	s.write("work/key.pem", "-----BEGIN PRIVATE KEY-----", 0o600)
	s.write("work/cert.pem", "-----BEGIN CERTIFICATE-----", 0o600)
	if got, want := credentials(), "--cwd copies 7 files that may hold credentials: .env, .npmrc, a/.env, b/.env, c/.env and 2 more: "; len(got) != 1 || !strings.HasPrefix(got[0], want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := s.good().CredentialFiles, []string{".env", ".npmrc", "a/.env", "b/.env", "c/.env", "d/.env", "key.pem"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	s.write("work/.bottleignore", ".env\n*/.env\n", 0o600)
	if got, want := s.good().CredentialFiles, []string{".npmrc", "key.pem"}; !slices.Equal(got, want) {
		t.Errorf("with .bottleignore: got %q, want %q", got, want)
	}
}

// A search that takes too long is reported, and does not delay the plan further.
func TestPrepareCwdCredentialsTimeout(t *testing.T) {
	s := newScene(t, "", "")
	s.spec.Cwd = true
	p := &preparation{spec: s.spec, plan: &Plan{kind: claude, Login: "KEY"}}
	ctx, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	if err := p.credentials(ctx); err != nil || !p.plan.CredentialsUnknown {
		t.Fatalf("%v, %+v", err, p.plan)
	}
	p.bottle = &manifest.Bottle{}
	if p.warn(); len(p.plan.Warnings) != 1 || !strings.Contains(p.plan.Warnings[0], "more files than could be searched for credentials in 2s") {
		t.Errorf("%q", p.plan.Warnings)
	}
}
