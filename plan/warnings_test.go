package plan

import (
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/manifest"
)

// TestManifestWarnings checks that entries that can never match and entries that the
// proxy cannot enforce are reported.
func TestManifestWarnings(t *testing.T) {
	m, err := manifest.Parse("bottle.yaml", []byte(`version: 1
bottles:
  good: {egress: {allow: [a.test, 10.1.2.3, "*.b.test"], deny: [c.b.test], allow_private: [10.0.0.0/8]}}
  never: {egress: {allow: [localhost, 169.254.169.254, "[fe80::1]"]}}
  pipelock: {egress: {allow: ["*.a.test"], deny: ["b.a.test:443"], allow_private: ["*.test"]}}
  builtin: {proxy: {kind: builtin}, egress: {allow: ["*.a.test"], deny: ["b.a.test:443"], allow_private: ["*.test"]}}
  untagged: {proxy: {image: example.test/pipelock}, egress: {allow: [a.test]}}
agents: {x: {bottle: good}}
`))
	if err != nil {
		t.Fatal(err)
	}
	got := ManifestWarnings(m)
	want := []string{
		`bottle never: allow entry "localhost": cannot be reached: resolves to a loopback address; `,
		`bottle never: allow entry "169.254.169.254": always refused: a link-local address that allow_private does not list; add 169.254.169.254 to`,
		`bottle never: allow entry "[fe80::1]": cannot be reached: sandboxes have no IPv6; `,
		`bottle never: allow entry "fe80::1": not supported by pipelock: an IPv6 address; `,
		`bottle pipelock: deny entry "b.a.test:443": not supported by pipelock: it denies a host on every port only; `,
		`bottle pipelock: allow_private entry "*.test": not supported by pipelock: a wildcard needs at least two labels`,
		`bottle untagged: proxy image example.test/pipelock: unknown version of pipelock: its image has no tag; state the version`,
	}
	if len(got) != len(want) {
		t.Fatalf("%d warnings, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
}
