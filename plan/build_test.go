package plan

import (
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/images/agent"
)

// TestPlanDefaultBuild checks that the default image is built if it is missing and if
// bottle's Dockerfile has changed. An image from elsewhere is not replaced.
func TestPlanDefaultBuild(t *testing.T) {
	for name, c := range map[string]struct {
		missing bool
		labels  map[string]string
		reason  string
	}{
		"missing":         {missing: true, reason: BuildMissing},
		"current":         {labels: map[string]string{agent.Label: agent.Hash(claude, nil)}},
		"older":           {labels: map[string]string{agent.Label: "older"}, reason: BuildChanged},
		"somebody's own":  {},
		"with own labels": {labels: map[string]string{"maintainer": "A Person"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, "", "")
			s.host.images = map[string]ImageInfo{}
			if !c.missing {
				s.host.images[defaultRef] = ImageInfo{Cmd: []string{"theirs"}, Labels: c.labels}
			}
			plan := s.good()
			if c.reason == "" {
				if plan.Build != nil {
					t.Errorf("unexpected build %+v", plan.Build)
				}
				return
			}
			b := plan.Build
			if b == nil || b.Reason != c.reason || !b.Default || b.Image != defaultRef {
				t.Fatalf("%+v", b)
			}
			if b.Labels()[agent.Label] != agent.Hash(claude, nil) || b.Context != "" || b.Dockerfile != "" {
				t.Errorf("wrong build: %+v", b)
			}
			if plan.User != agent.User || !slices.Equal(plan.Command, claude.Command) {
				t.Errorf("user %s and command %q", plan.User, plan.Command)
			}
		})
	}
}

// TestPlanDefaultBuildArgs checks that changed build arguments cause a new build of the
// default image.
func TestPlanDefaultBuildArgs(t *testing.T) {
	s := newScene(t, `build: {args: {BASE: "mine:1"}, secrets: {sources: list, npmrc: "env:NPMRC"}}`, "")
	s.write("work/list", "deb", 0o600)
	s.env["NPMRC"] = "registry"
	for reason, images := range map[string]map[string]ImageInfo{
		BuildMissing: {},
		BuildChanged: {defaultRef: {Labels: map[string]string{agent.Label: agent.Hash(claude, map[string]string{"BASE": "mine:2"})}}},
	} {
		s.host.images = images
		b := s.good().Build
		if b == nil || b.Reason != reason || !b.Default || b.Args["BASE"] != "mine:1" || len(b.Secrets) != 2 {
			t.Fatalf("%s: %+v", reason, b)
		}
		npmrc, sources := b.Secrets[0], b.Secrets[1]
		if npmrc.ID != "npmrc" || npmrc.From != "env:NPMRC" || npmrc.Value.Reveal() != "registry" {
			t.Errorf("%s: secret %s from %s", reason, npmrc.ID, npmrc.From)
		}
		if sources.ID != "sources" || sources.From != s.path("work/list") || sources.Value.Reveal() != "deb" {
			t.Errorf("%s: secret %s from %s", reason, sources.ID, sources.From)
		}
		s.host.images = map[string]ImageInfo{defaultRef: {Labels: b.Labels(), Cmd: claude.Command}}
		if b := s.good().Build; b != nil {
			t.Errorf("an up-to-date image is rebuilt: %+v", b)
		}
	}
	s.host.images = map[string]ImageInfo{}
	delete(s.env, "NPMRC")
	s.bad("build secret npmrc", "NPMRC is not set")
}

// TestAgentDockerfile checks user, command and arguments in the Dockerfile of each kind.
func TestAgentDockerfile(t *testing.T) {
	for _, name := range agents.Names() {
		k := agents.Get(name)
		if k.Image == nil {
			continue
		}
		text := string(agent.Dockerfile(k))
		lines := []string{"\nUSER " + agent.User + "\n", "\nCMD [\"" + k.Program() + "\"]\n", k.Image.Install}
		for _, arg := range k.Image.Args {
			lines = append(lines, "\nARG "+arg+"\n")
		}
		for _, line := range lines {
			if !strings.Contains(text, line) {
				t.Errorf("%s: missing in the Dockerfile: %q", name, line)
			}
		}
	}
}

// TestPlanDefaultBuildElsewhere checks that only the default name causes the default
// build, also if it comes from the environment.
func TestPlanDefaultBuildElsewhere(t *testing.T) {
	s := newScene(t, "image: mine", "")
	s.host.images = map[string]ImageInfo{}
	if plan := s.good(); plan.Build != nil || plan.Pull != "docker.io/library/mine:latest" {
		t.Errorf("another image is built: %+v", plan.Build)
	}
	s.env["CLAUDE_BOTTLE_IMAGE"] = "docker.io/library/claude-bottle"
	if plan := s.good(); plan.Build == nil || !plan.Build.Default {
		t.Errorf("the default image, named by the environment, is not built: %+v", plan.Build)
	}
}

const ownBuild = `image: mine, build: {context: sub, dockerfile: sub/Make.file, target: dev, args: {A: "1"}, secrets: {tok: tok, var: "env:TOKEN"}}`

func TestPlanOwnBuild(t *testing.T) {
	const ref = "docker.io/library/mine:latest"
	s := newScene(t, ownBuild, "command: [run]")
	s.write("work/sub/Make.file", "FROM scratch\n", 0o644)
	s.write("work/tok", "file-value", 0o600)
	s.env["TOKEN"] = "env-value"
	plan := s.good()
	b := plan.Build
	if b == nil || b.Image != ref || b.Reason != BuildMissing || b.Default {
		t.Fatalf("%+v", b)
	}
	if b.Context != s.path("work/sub") || b.Dockerfile != s.path("work/sub/Make.file") || b.Target != "dev" || b.Args["A"] != "1" {
		t.Errorf("%+v", b)
	}
	values := map[string]string{}
	for _, s := range b.Secrets {
		values[s.ID] = s.Value.Reveal()
	}
	if values["tok"] != "file-value" || values["var"] != "env-value" || len(b.Secrets) != 2 {
		t.Errorf("secrets %q", values)
	}
	s.host.images[ref] = ImageInfo{User: "u"}
	if plan := s.good(); plan.Build == nil || plan.Build.Reason != BuildInputs || plan.User != "u" {
		t.Errorf("%+v", plan.Build)
	}
	s.env["CLAUDE_BOTTLE_IMAGE"] = "other"
	s.host.images["docker.io/library/other:latest"] = ImageInfo{}
	if plan := s.good(); plan.Build != nil {
		t.Errorf("an image named by the environment is built by the manifest's recipe: %+v", plan.Build)
	}
}

// TestPlanOwnBuildCommand checks that an agent without a command gets the command of an
// image that is built later.
func TestPlanOwnBuildCommand(t *testing.T) {
	s := newScene(t, "image: mine, build: {}", "")
	s.write("work/Dockerfile", "FROM scratch\n", 0o644)
	s.spec.Args = []string{"more"}
	plan := s.good()
	if len(plan.Command) != 0 || plan.Build.Context != s.path("work") || plan.Build.Dockerfile != s.path("work/Dockerfile") {
		t.Fatalf("%q, %+v", plan.Command, plan.Build)
	}
	done, err := plan.WithImages(ImageInfo{Entrypoint: []string{"entry"}, User: "u"}, nil)
	if err != nil || !slices.Equal(done.Command, []string{"entry", "more"}) || done.User != "u" || done.Pending() {
		t.Errorf("%+v, %v", done, err)
	}
	if !plan.Pending() || len(plan.Command) != 0 {
		t.Errorf("WithImages changed its receiver: %+v", plan)
	}
	if _, err := plan.WithImages(ImageInfo{}, nil); err == nil {
		t.Error("no error for an image without a command")
	}
}

func TestPlanOwnBuildErrors(t *testing.T) {
	s := newScene(t, ownBuild, "command: [run]")
	s.write("work/tok", "file-value", 0o600)
	s.env["TOKEN"] = "env-value"
	s.bad("build context", "work/sub", "set context")
	s.mkdir("work/sub")
	s.bad("missing Dockerfile", "Make.file")
	s.write("work/sub/Make.file", "FROM scratch\n", 0o644)
	s.write("work/tok", "file-value", 0o644)
	s.bad("build secret tok", "readable by others")
	s.write("work/tok", "file-value", 0o600)
	delete(s.env, "TOKEN")
	s.bad("build secret var", "TOKEN is not set")
}

// TestPlanBuildCwd checks that the base of a derived image is built as it would be
// without --cwd, and that user and command come from the base.
func TestPlanBuildCwd(t *testing.T) {
	s := newScene(t, "", "")
	s.spec.CwdImage = true
	for reason, images := range map[string]map[string]ImageInfo{
		BuildMissing: {},
		BuildChanged: {defaultRef: {Labels: map[string]string{agent.Label: "older"}}},
	} {
		s.host.images = images
		plan := s.good()
		if b := plan.Build; b == nil || b.Image != defaultRef || b.Reason != reason || plan.BaseRef != defaultRef || plan.Image == defaultRef {
			t.Errorf("%s: builds %+v for %s on %s", reason, plan.Build, plan.Image, plan.BaseRef)
		}
		if plan.User != agent.User || !slices.Equal(plan.Command, claude.Command) || plan.ImageCommand {
			t.Errorf("%s: user %s and command %q", reason, plan.User, plan.Command)
		}
	}
	s = newScene(t, "image: mine, build: {}", "")
	s.write("work/Dockerfile", "FROM scratch\n", 0o644)
	s.spec.CwdImage = true
	plan := s.good()
	const mine = "docker.io/library/mine:latest"
	if b := plan.Build; b == nil || b.Image != mine || b.Reason != BuildMissing || plan.BaseRef != mine || plan.Pull != "" {
		t.Fatalf("builds %+v on %s", plan.Build, plan.BaseRef)
	}
	if done, err := plan.WithImages(ImageInfo{Cmd: []string{"theirs"}}, nil); err != nil || !slices.Equal(done.Command, []string{"theirs"}) {
		t.Errorf("%+v, %v", done, err)
	}
}

// TestPullNeverNamed checks that the manifest's build does not apply to an image from
// the environment: the hint suggests a pull.
func TestPullNeverNamed(t *testing.T) {
	s := newScene(t, "image: mine, build: {}", "")
	s.write("work/Dockerfile", "FROM scratch\n", 0o644)
	s.env["CLAUDE_BOTTLE_IMAGE"] = "other"
	s.spec.Pull = PullNever
	s.bad("missing image other", "bottle pull other")
}
