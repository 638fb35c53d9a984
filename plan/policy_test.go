package plan

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/policy"
)

// bounded gives the scene's caller, who runs bottle with sudo, a policy.
func (s *scene) bounded(text string) {
	s.t.Helper()
	p, err := policy.Parse("/etc/bottle/policy.yaml", []byte(text))
	if err != nil {
		s.t.Fatal(err)
	}
	s.spec.Rules = policy.Bind(p)
}

const digestOne = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// TestPolicyBounds: the plan shows what the administrator's policy has changed.
func TestPolicyBounds(t *testing.T) {
	s := newScene(t, `egress: {allow: ["*.test"]}, limits: {pids: 50}`, "")
	s.bounded("version: 1\nlimits: {memory: 1GiB, pids: 100}\negress: {never: [\"*.evil.test\", bad.test]}\n")
	p, err := Prepare(context.Background(), s.spec, s.host)
	if err != nil {
		t.Fatal(err)
	}
	want := []policy.Bound{{Key: "egress.never", Effect: "denies 2 hosts"}, {Key: "limits.memory", Effect: "memory 1GiB instead of 4GiB"}}
	if p.Policy == nil || !slices.Equal(p.Policy.Bounds, want) || len(p.Policy.SHA256) != 64 {
		t.Errorf("policy %+v", p.Policy)
	}
	if p.Limits.Memory != 1<<30 || p.Limits.Pids != 50 {
		t.Errorf("limits %+v", p.Limits)
	}
	if deny := p.Entries().Deny; !slices.Equal(deny, []string{"*.evil.test", "bad.test"}) {
		t.Errorf("denied %q", deny)
	}
}

// TestPolicyRefusals: a plan reports everything that the policy refuses, with other
// mistakes.
func TestPolicyRefusals(t *testing.T) {
	s := newScene(t, `egress: {allow: [bad.test], allow_private: [10.0.0.1]}, limits: {memory: 2GiB}, env: {TOKEN: {from: TOKEN}}`, "")
	s.env["TOKEN"] = "x"
	s.bounded("version: 1\nlimits: {memory: 1GiB}\negress: {never: [bad.test]}\nsecrets: []\nimages: [x.test/y]\n")
	s.spec.Runtime = Runc
	_, err := Prepare(context.Background(), s.spec, s.host)
	for _, want := range []string{
		"memory 2GiB, which is more than 1GiB, is refused by limits.memory",
		"runtime runc is refused by runtimes", "private destination 10.0.0.1/32 is refused by egress.private",
		"host bad.test is refused by egress.never", "secret TOKEN from environment is refused by secrets",
		"image docker.io/library/claude-bottle:latest is refused by images",
	} {
		if !slices.ContainsFunc(hint.Split(err), func(e error) bool { return strings.HasPrefix(e.Error(), want) }) {
			t.Errorf("not refused: %s; got\n%v", want, err)
		}
	}
	if len(hint.Split(err)) != 6 {
		t.Errorf("refusals:\n%v", err)
	}
}

// TestPolicyOfPulledImages: the digest of an image that the policy names is checked when
// the image was pulled, and again at the launch.
func TestPolicyOfPulledImages(t *testing.T) {
	s := newScene(t, `image: "x.test/y:1"`, "command: [a]")
	s.bounded("version: 1\nimages: [\"x.test/y@" + digestOne + "\"]\n")
	p, err := Prepare(context.Background(), s.spec, s.host)
	if err != nil || p.Pull == "" {
		t.Fatalf("%+v, %v", p, err)
	}
	good := ImageInfo{Ref: "x.test/y:1", Digest: digestOne}
	done, err := p.WithImages(good, nil)
	if err != nil || done.ImageDigest != digestOne {
		t.Errorf("control: %+v, %v", done, err)
	}
	bad := ImageInfo{Ref: "x.test/y:1", Digest: strings.ReplaceAll(digestOne, "1", "2")}
	_, err = p.WithImages(bad, nil)
	if _, refused := errors.AsType[*policy.Refusal](err); !refused {
		t.Errorf("pulled: %v", err)
	}
	if err := done.CheckImage(bad.Ref, bad.Digest); err == nil {
		t.Error("an image that was replaced is accepted")
	}
	if err := done.CheckImage(good.Ref, good.Digest); err != nil {
		t.Errorf("control: %v", err)
	}
}
