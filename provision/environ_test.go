package provision

import (
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
)

const javaProxy = "-Dhttp.proxyHost=10.77.0.1 -Dhttp.proxyPort=8888 -Dhttps.proxyHost=10.77.0.1 -Dhttps.proxyPort=8888 " +
	"-Daether.connector.http.useSystemProperties=true"

// proxyVariables are the defaults for clients that do not read HTTP_PROXY.
var proxyVariables = map[string]string{
	"NODE_USE_ENV_PROXY": "1",
	"YARN_HTTP_PROXY":    "http://10.77.0.1:8888",
	"YARN_HTTPS_PROXY":   "http://10.77.0.1:8888",
	"MAVEN_OPTS":         javaProxy,
	"GRADLE_OPTS":        javaProxy,
}

// valuesOf returns all values of a variable.
func valuesOf(env []string, name string) []string {
	var values []string
	for _, kv := range env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			values = append(values, value)
		}
	}
	return values
}

func TestProxyVariables(t *testing.T) {
	env := Agent{Hostname: "claude-bottle-x"}.Environ(Image{})
	want := map[string]string{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		want[name] = "http://10.77.0.1:8888"
	}
	for _, name := range []string{"NO_PROXY", "no_proxy"} {
		want[name] = "localhost,127.0.0.1,127.0.1.1,::1,0.0.0.0,10.77.0.2,claude-bottle-x"
	}
	for name, value := range proxyVariables {
		want[name] = value
	}
	for name, value := range want {
		if got := valuesOf(env, name); !slices.Equal(got, []string{value}) {
			t.Errorf("%s: %q, want %q once", name, got, value)
		}
	}
}

func TestProxyVariablesOverridden(t *testing.T) {
	for name := range proxyVariables {
		t.Run(name, func(t *testing.T) {
			literal := Agent{Variables: []Variable{{Name: name, Source: manifest.SourceLiteral, Literal: "own"}}}
			if got := valuesOf(literal.Environ(Image{}), name); !slices.Equal(got, []string{"own"}) {
				t.Errorf("with a literal: %q", got)
			}
			// A secret is set for sessions; the stored environment must not have a value.
			hidden := Agent{Variables: []Variable{{Name: name, Source: SourceEnvFile, Secret: secret.New("own")}}}
			if got := valuesOf(hidden.Environ(Image{}), name); got != nil {
				t.Errorf("with a secret: %q", got)
			}
			if got := valuesOf(Agent{}.Environ(Image{Env: []string{name + "=own"}}), name); got != nil {
				t.Errorf("with the image's: %q", got)
			}
			// An empty value overrides too.
			if got := valuesOf(Agent{}.Environ(Image{Env: []string{name + "="}}), name); got != nil {
				t.Errorf("with the image's empty value: %q", got)
			}
		})
	}
	// The image does not override the addresses of the proxy.
	own := Agent{}.Environ(Image{Env: []string{"HTTPS_PROXY=http://evil.test", "no_proxy=*"}})
	for _, name := range []string{"HTTPS_PROXY", "no_proxy"} {
		if got := valuesOf(own, name); len(got) != 1 || strings.Contains(got[0], "evil") || strings.Contains(got[0], "*") {
			t.Errorf("%s: %q", name, got)
		}
	}
}
