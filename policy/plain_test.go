package policy

import (
	"maps"
	"testing"

	"github.com/bot-bottle/bottle/internal/hostconfig"
)

// FuzzPlain: what is read as a plain configuration is one, with the same settings and with
// nothing else.
func FuzzPlain(f *testing.F) {
	for _, text := range []string{
		"version: 1\n", "# comment\n\nversion: 1\nrun_dir: /run/x\nnamespace: lab-1\n", "version: 1\nnamespace: true\n",
		"version: 1\nnamespace: 2020-01-01\n", "version: 1\naudit:\n  to: syslog\n", "version: 1\nrun_dir: \"/run\"\n",
		"version: 1\nrun_dir: /run #x\n", "version: 1\nrun_dir: run\n", "version: 1\nrun_dir: /a\nrun_dir: /b\n", "version: 1\nrun_dir: /a\n  b\n",
		"version: 1\nusers_may_set: [run_dir]\n", "version: 1\nrun_dir: /a:\n", "version: 1\n---\nrun_dir: /a\n", "version: 1\nnamespace: e-1\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		values, ok := hostconfig.Plain(data)
		if !ok {
			return
		}
		c, err := ParseConfig("f", data)
		if err != nil {
			t.Fatalf("%q is plain, but invalid: %v", data, err)
		}
		if !maps.Equal(c.Values, values) || len(c.UsersMaySet) > 0 || c.Audit.To != "" {
			t.Errorf("%q: plain %v, parsed %+v", data, values, c)
		}
	})
}

// TestPlain: a configuration with settings alone is plain, and one with more is not.
func TestPlain(t *testing.T) {
	for text, want := range map[string]bool{
		"version: 1\nrun_dir: /run/x\nnamespace: lab-1\naddress: /run/c.sock\n": true,
		"version: 1\n":                           true,
		"run_dir: /run/x\n":                      false,
		"version: 1\naudit:\n  to: syslog\n":     false,
		"version: 1\nusers_may_set: [run_dir]\n": false,
	} {
		if _, ok := hostconfig.Plain([]byte(text)); ok != want {
			t.Errorf("%q: %v", text, ok)
		}
	}
}
