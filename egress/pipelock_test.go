package egress

import (
	"errors"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/docker/go-units"
	"go.yaml.in/yaml/v4"
)

// The rendered configuration equals, key by key, the one that was run with
// pipelock 2.3.0; other versions differ from it only as listed.
func TestRender(t *testing.T) {
	p, err := Entries{
		Allow:        []string{"api.example.test:8443", "*.wild.test", "internal.example.test", "10.77.0.10"},
		SSH:          []string{"git.example.test", "git.example.test:2222"},
		Deny:         []string{"no.wild.test", "*.never.wild.test"},
		AllowPrivate: []string{"internal.example.test", "10.77.0.10"},
	}.Policy()
	if err != nil {
		t.Fatal(err)
	}
	public := p // without what 2.0 cannot do
	public.Private, public.PrivateNames = nil, nil
	golden, err := os.ReadFile("testdata/pipelock.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		version string
		policy  Policy
		without []string // keys
	}{
		{"2.0.0", public, []string{"trusted_domains", "ssrf", "media_policy", "fetch_proxy.monitoring.subdomain_entropy_threshold"}},
		{"2.1.2", p, []string{"media_policy"}},
		{"2.2.0", p, nil},
		{"2.3.0", p, nil},
		{"2.4.0", p, nil},
		{"3.0.0", public, []string{"trusted_domains", "ssrf"}},
		{"3.2.0", public, []string{"trusted_domains", "ssrf"}},
		{"3.7.1", public, []string{"trusted_domains", "ssrf"}},
		{"3.8.0", public, []string{"trusted_domains", "ssrf", "metrics_listen"}},
		{"3.9.2", public, []string{"trusted_domains", "ssrf", "metrics_listen"}},
	} {
		rendered, err := tc.policy.Render(tc.version)
		if err != nil {
			t.Errorf("%s: %v", tc.version, err)
			continue
		}
		got, want := yamlKeys(t, rendered), yamlKeys(t, golden)
		for _, key := range tc.without {
			if _, ok := want[key]; !ok {
				t.Errorf("%s: %s is not in the golden file", tc.version, key)
			}
			delete(want, key)
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			if !reflect.DeepEqual(got[key], want[key]) {
				t.Errorf("%s: %s is %v, want %v", tc.version, key, got[key], want[key])
			}
			delete(got, key)
		}
		for key := range got {
			t.Errorf("%s: unexpected key %s", tc.version, key)
		}
	}
}

// Two plain HTTP responses of the largest size pass at the same time within pipelock's
// memory limit. Version 2.3.0 was measured: 642 MiB for two responses of 32 MiB, with
// the limit of Go's runtime.
func TestPipelockMemory(t *testing.T) {
	const observed = 642 << 20 // for two responses of 32 MiB
	if need := int64(observed) * PipelockMaxResponse / 32; need > PipelockMemory*9/10 {
		t.Errorf("two responses of %d MB need %d bytes, and the limit is %d", PipelockMaxResponse, need, PipelockMemory)
	}
	limit, err := units.RAMInBytes(strings.TrimPrefix(PipelockEnv(PipelockMemory), "GOMEMLIMIT="))
	if err != nil || limit > PipelockMemory*3/4 {
		t.Errorf("%s leaves no room below %d bytes (%v)", PipelockEnv(PipelockMemory), PipelockMemory, err)
	}
	rendered, err := Policy{}.Render("2.3.0")
	if err != nil {
		t.Fatal(err)
	}
	if got := yamlKeys(t, rendered)["fetch_proxy.max_response_mb"]; got != PipelockMaxResponse {
		t.Errorf("max_response_mb is %v", got)
	}
}

// An empty policy renders to a non-empty list that allows nothing.
func TestRenderEmpty(t *testing.T) {
	rendered, err := Policy{}.Render("2.3.0")
	if err != nil {
		t.Fatal(err)
	}
	got := yamlKeys(t, rendered)
	if want := []any{"nothing.invalid"}; !reflect.DeepEqual(got["api_allowlist"], want) {
		t.Errorf("api_allowlist is %v, want %v", got["api_allowlist"], want)
	}
	for _, key := range []string{"trusted_domains", "ssrf"} {
		if v, ok := got[key]; ok {
			t.Errorf("%s is %v, want none", key, v)
		}
	}
	// Without the key, some versions have a list of their own.
	if got["fetch_proxy.monitoring.blocklist"] == nil {
		t.Error("the blocklist is not rendered")
	}
}

// Policies that differ only in ports, which pipelock does not know, render to the
// same bytes: there is nothing to reload.
func TestRenderStable(t *testing.T) {
	render := func(allow, deny []string) string {
		p, err := Entries{Allow: allow, Deny: deny}.Policy()
		if err != nil {
			t.Fatal(err)
		}
		data, err := p.Render("2.3.0")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	base := render([]string{"b.test", "a.test"}, nil)
	if got := render([]string{"a.test:8443", "b.test", "b.test:3000-3010"}, nil); got != base {
		t.Errorf("other ports render to\n%s\nwant\n%s", got, base)
	}
	if render([]string{"a.test", "b.test"}, []string{"x.a.test"}) == base {
		t.Error("a deny entry renders to nothing")
	}
}

func TestPipelockVersion(t *testing.T) {
	for tag, want := range map[string]string{
		"2.3.0": "2.3.0", "v3.8.1": "3.8.1", "3.7.1-amd64": "3.7.1", "2.0.0+build": "2.0.0",
		"": "", "latest": "", "2": "", "3.8": "", "v2": "", "stable-3.8.0": "", "1.9.0": "", "4.0.0": "", "3.8.0.1": "",
	} {
		v, err := PipelockVersionOfTag(tag)
		var unknown *PipelockVersionError
		switch {
		case want != "" && (err != nil || v.String() != want):
			t.Errorf("tag %q: %v, %v; want %s", tag, v, err, want)
		case want == "" && !errors.As(err, &unknown):
			t.Errorf("tag %q: %v, %v; want a PipelockVersionError", tag, v, err)
		case want == "" && unknown.Hint() == "":
			t.Errorf("tag %q: no hint", tag)
		}
	}
	for _, version := range []string{"", "1.5.0", "v2.3.0", "latest", "4.0.0", "2.3", "2.3.0-rc1", "02.3.0x"} {
		var unknown *PipelockVersionError
		if _, err := (Policy{}).Render(version); !errors.As(err, &unknown) {
			t.Errorf("render for version %q: %v, want a PipelockVersionError", version, err)
		}
	}
	for version, image := range map[string]string{
		"2.3.0": "ghcr.io/luckypipewrench/pipelock:2.3.0", "3.7.1": "ghcr.io/luckypipewrench/pipelock:3.7.1",
		"3.8.0": "ghcr.io/pipelab-org/pipelock:3.8.0", "3.10.0": "ghcr.io/pipelab-org/pipelock:3.10.0",
	} {
		v, err := ParsePipelockVersion(version)
		if err != nil || v.Image() != image {
			t.Errorf("%s: image %s, %v; want %s", version, v.Image(), err, image)
		}
		if run := v.WasRun(); run != (version == "2.3.0") {
			t.Errorf("%s: was run: %v", version, run)
		}
	}
	if _, err := ParsePipelockVersion(DefaultPipelockVersion); err != nil {
		t.Error(err)
	}
}

// What pipelock cannot do is an error of the check, with the true reason, and not
// one of its start.
func TestCheckPipelock(t *testing.T) {
	for _, tc := range []struct {
		version string
		entries Entries
		want    string // reasons, one a line; "" for none
	}{
		{"2.3.0", Entries{Allow: []string{"*.test", "my_bucket.example.test", "*.co.uk", "a.test:3000-3010"}, Deny: []string{"x.test", "*.y.test"}}, ""},
		{"2.3.0", Entries{Allow: []string{"a.test"}, AllowPrivate: []string{"*.test", "*.corp.test"}}, `allow_private entry "*.test": not supported by pipelock: a wildcard needs at least two labels, as in *.corp.example`},
		{"3.8.0", Entries{Allow: []string{"a.test"}, AllowPrivate: []string{"*.test"}}, `allow_private entry "*.test": not supported by pipelock: a wildcard needs at least two labels, as in *.corp.example`},
		{"3.8.0", Entries{Allow: []string{"*.test", "my_bucket.example.test", "*.co.uk", "*.github.io", "2001:db8::1"}}, `allow entry "*.test": not supported by pipelock: a wildcard for a whole top-level domain or public suffix
allow entry "my_bucket.example.test": not supported by pipelock: a host name with an underscore
allow entry "*.co.uk": not supported by pipelock: a wildcard for a whole top-level domain or public suffix
allow entry "2001:db8::1": not supported by pipelock: an IPv6 address`},
		{"3.8.0", Entries{Allow: []string{"a.test"}, Deny: []string{"*.test", "b_c.test"}}, `deny entry "b_c.test": not supported by pipelock: a host name with an underscore`},
		{"2.3.0", Entries{Allow: []string{"*.a.test"}, Deny: []string{"b.a.test:443", "c.a.test:1-9", "10.1.2.3"}}, `deny entry "b.a.test:443": not supported by pipelock: it denies a host on every port only
deny entry "c.a.test:1-9": not supported by pipelock: it denies a host on every port only
deny entry "10.1.2.3": not supported by pipelock: it denies no address to names that resolve to it`},
		{"2.0.0", Entries{Allow: []string{"a.test"}, AllowPrivate: []string{"a.test", "10.0.0.0/8"}}, `allow_private entry "a.test": not supported by pipelock: private destinations need 2.1.1 or later
allow_private entry "10.0.0.0/8": not supported by pipelock: private destinations need 2.1.1 or later`},
		{"2.3.0", Entries{Allow: []string{"a.test:1-65535"}, SSH: []string{"git.test"}}, `allow entry "a.test:1-65535": not supported by pipelock: 65535 ports (at most 4096)`},
	} {
		p, err := tc.entries.Policy()
		if err != nil {
			t.Fatal(err)
		}
		v, err := ParsePipelockVersion(tc.version)
		if err != nil {
			t.Fatal(err)
		}
		err = p.CheckPipelock(v)
		if got := errText(err); got != tc.want {
			t.Errorf("%s, %+v:\n%s\nwant:\n%s", tc.version, tc.entries, got, tc.want)
		}
		var unsupported *UnsupportedError
		if err != nil && (!errors.As(err, &unsupported) || unsupported.Hint() == "") {
			t.Errorf("%v is not an UnsupportedError with a hint", err)
		}
		if _, rerr := p.Render(tc.version); (rerr == nil) != (err == nil) {
			t.Errorf("%s, %+v: rendering: %v", tc.version, tc.entries, rerr)
		}
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// yamlKeys are the values of a YAML document by their keys, those of mappings
// within mappings joined by dots.
func yamlKeys(t *testing.T, data []byte) map[string]any {
	t.Helper()
	var keys map[string]any
	if err := yaml.Unmarshal(data, &keys); err != nil {
		t.Fatalf("%v in:\n%s", err, data)
	}
	flat := map[string]any{}
	var flatten func(prefix string, m map[string]any)
	flatten = func(prefix string, m map[string]any) {
		for k, v := range m {
			if inner, ok := v.(map[string]any); ok && k != "ssrf" && k != "media_policy" {
				flatten(prefix+k+".", inner)
			} else {
				flat[prefix+k] = v
			}
		}
	}
	flatten("", keys)
	return flat
}
