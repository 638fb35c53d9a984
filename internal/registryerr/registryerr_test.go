package registryerr

import (
	"errors"
	"testing"
)

// TestDeniedBy has errors as containerd and BuildKit return them.
func TestDeniedBy(t *testing.T) {
	for name, c := range map[string]struct {
		err   string
		asked []string
		want  string
	}{
		"registry":        {`failed to resolve reference "r.test/a:1": unexpected status from HEAD request to https://r.test/v2/a/manifests/1: 401 Unauthorized`, nil, "r.test"},
		"mirror":          {`unexpected status from HEAD request to https://m.test:5000/v2/a/manifests/1?ns=r.test: 403 Forbidden`, []string{"r.test"}, "m.test:5000"},
		"without TLS":     {`unexpected status from HEAD request to http://127.0.0.1:5000/v2/a/manifests/1: 401 Unauthorized`, nil, "127.0.0.1:5000"},
		"Docker Hub":      {`unexpected status from HEAD request to https://registry-1.docker.io/v2/a/b/manifests/1: 401 Unauthorized`, nil, "docker.io"},
		"token server":    {`failed to authorize: failed to fetch oauth token: unexpected status from POST request to https://auth.test/token: 401 Unauthorized`, []string{"r.test", "m.test"}, "m.test"},
		"scope":           {`pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed`, []string{"registry-1.docker.io"}, "docker.io"},
		"unknown host":    {`pull access denied: insufficient_scope: authorization failed`, nil, ""},
		"not found":       {`unexpected status from HEAD request to https://r.test/v2/a/manifests/1: 404 Not Found`, []string{"r.test"}, ""},
		"permissions":     {`open /x: permission denied: unknown`, []string{"r.test"}, ""},
		"not a registry":  {`process "/bin/sh -c exit 7" did not complete successfully: exit code: 7`, []string{"r.test"}, ""},
		"denied in words": {`unexpected status: denied: requested access to the resource is denied`, []string{"r.test"}, "r.test"},
	} {
		if got := DeniedBy(errors.New(c.err), c.asked); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := DeniedBy(nil, []string{"r.test"}); got != "" {
		t.Errorf("no error: %q", got)
	}
}
