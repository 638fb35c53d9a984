package plan

import (
	"slices"
	"testing"
)

// TestPrepareWorkspace: --cwd plans a workspace on the bottle's own image, --cwd-image an
// image with a copy of the directory.
func TestPrepareWorkspace(t *testing.T) {
	s := newScene(t, "limits: {workspace: 2GiB}", "")
	s.host.workspace = []string{"the disk is small"}
	s.spec.Cwd = true
	got := s.good()
	if w := got.Workspace; w == nil || w.Size != 2<<30 || w.Existing || got.Image != defaultRef || got.BaseRef != "" || got.Dir == "" || got.Target != DefaultCwdTarget {
		t.Errorf("with --cwd: %+v, %+v", got, w)
	}
	if !slices.Contains(got.Warnings, "the disk is small") {
		t.Errorf("warnings: %q", got.Warnings)
	}
	if got.CwdIgnored {
		t.Error("ignored files are copied without the flag")
	}
	s.spec.CwdIgnored = true
	if got := s.good(); !got.CwdIgnored {
		t.Error("ignored files are not copied with the flag")
	}
	s.spec.CwdImage = true
	s.bad("--cwd and --cwd-image exclude each other", "use --cwd")
	s.spec.Cwd = false
	if got := s.good(); got.Workspace != nil || got.Image == defaultRef || got.BaseRef != defaultRef || slices.Contains(got.Warnings, "the disk is small") {
		t.Errorf("with --cwd-image: %+v", got)
	}
	s.spec.CwdImage = false
	if got := s.good(); got.Workspace != nil || got.Dir != "" {
		t.Errorf("without either: %+v", got)
	}
}

// TestPrepareResume: bottle start plans the existing workspace, under the bottle's name
// although that is taken.
func TestPrepareResume(t *testing.T) {
	s := newScene(t, "limits: {workspace: 2GiB}", "")
	s.host.taken = map[string]bool{"claude-bottle-again": true}
	s.spec.Resume = &Resume{Name: "claude-bottle-again", Dir: "/elsewhere", Target: "/there", Runtime: Runc, Size: 1 << 30}
	got := s.good()
	if w := got.Workspace; w == nil || w.Size != 1<<30 || !w.Existing || got.Dir != "/elsewhere" || got.Target != "/there" ||
		got.Name != "claude-bottle-again" || !got.Pinned || got.Runtime != Runc || got.Image != defaultRef {
		t.Errorf("%+v, %+v", got, w)
	}
}
