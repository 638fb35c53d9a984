//go:build kube

package clustertest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestKubeInject: the agent's pod has a placeholder, and requests arrive with the value, which
// only the proxy has: of curl, and of the git that clones the repository. Without injection
// the agent has the value. A rule for requests is applied too.
func TestKubeInject(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte(secretValue))
	hash := hex.EncodeToString(sum[:])
	manifest := func(inject, allowed string) string {
		return `version: 1
bottles:
  dev:
    image: lab.test/agent:test
    env:
      KEY: {from: TOKEN, inject: ` + inject + `}
      GIT_CONFIG_COUNT: "1"
      GIT_CONFIG_KEY_0: credential.helper
      GIT_CONFIG_VALUE_0: '!f() { echo username=x; echo "password=$KEY"; }; f'
    egress: {allow: [` + allowed + `, git.allowed.test]}
    proxy: {kind: builtin}
    git: {name: A Name, email: a@example.com}
    limits: {memory: 256m, disk: 1g}
agents:
  impl:
    bottle: dev
    kind: claude
    command:
      - bash
      - -c
      - |
        for key in "$KEY" wrong; do
          curl -sS -o /dev/null -w 'status %{http_code}\n' -H "Authorization: Bearer $key" https://allowed.test/auth/` + hash + `/
        done
        curl -sS -o /dev/null -w 'status %{http_code}\n' -X OPTIONS https://allowed.test/
        echo done
        exec sleep infinity
`
	}
	run := func(ns, manifest, third string) (agent func(command string) string) {
		t.Helper()
		t.Cleanup(func() { _, _ = tryKubectl("", "delete", "namespace", ns, "--wait=false", "--ignore-not-found") })
		args := append([]string{"run", "impl", "--detach", "--namespace", ns, "--repo", "https://git.allowed.test/auth/" + hash + "/demo.git"}, ownImage...)
		if _, errs, code := output(t, bottle(t, manifest, args...)); code != 0 {
			t.Fatalf("run: exit code %d, %s", code, errs)
		}
		// The upstream server answers 200 to the value only.
		out := waitLog(t, "done", "--namespace", ns, "agent", "-c", "agent")
		if got := regexp.MustCompile(`status \d+`).FindAllString(out, -1); !slices.Equal(got, []string{"status 200", "status 401", "status " + third}) {
			t.Errorf("%s: the answers to the variable, to a wrong value and to another method: %q, want 200, 401 and %s: %s", ns, got, third, out)
		}
		return func(command string) string {
			return kubectl(t, "", "--namespace", ns, "exec", "agent", "-c", "agent", "--", "sh", "-c", command)
		}
	}
	const ns = "bottle-inject"
	const narrow = "{host: allowed.test, methods: [GET]}"
	agent := run(ns, manifest("[allowed.test, git.allowed.test]", narrow), "403")
	key := strings.TrimSpace(agent(`echo "$KEY"`))
	if key == "" || strings.Contains(key, secretValue) {
		t.Errorf("the agent's variable is %q", key)
	}
	if out := agent("cat /proc/*/environ /.bottle/agent.json /.bottle/ca.pem | tr '\\0' '\\n'; env; grep -rsl " + secretValue + " /.bottle /workspace /home /root /tmp /run /etc; true"); strings.Contains(out, secretValue) || !strings.Contains(out, key) {
		t.Errorf("control: placeholder found: %v; the value is in the agent's pod: %s", strings.Contains(out, key), out)
	}
	if out := agent("git log -1 --format=%an"); strings.TrimSpace(out) == "" {
		t.Error("the repository was not cloned with the injected login")
	}
	// In the API, one Secret has it, which the proxy's pod mounts and no other.
	everything := kubectl(t, "", "--namespace", ns, "get", "pods,configmaps,deployments,replicasets,events", "--output", "yaml")
	for _, form := range []string{secretValue, base64.StdEncoding.EncodeToString([]byte(secretValue))} {
		if strings.Contains(everything, form) {
			t.Error("an object contains the value")
		}
	}
	var secrets struct {
		Items []struct {
			Metadata struct{ Name string }
			Data     map[string][]byte
		}
	}
	if err := json.Unmarshal([]byte(kubectl(t, "", "--namespace", ns, "get", "secrets", "--output", "json")), &secrets); err != nil {
		t.Fatal(err)
	}
	with := ""
	for _, s := range secrets.Items {
		for _, value := range s.Data {
			if strings.Contains(string(value), secretValue) {
				with += s.Metadata.Name + " "
			}
		}
	}
	if with != "proxy-secrets " {
		t.Errorf("the Secrets with the value: %s", with)
	}
	if out := kubectl(t, "", "--namespace", ns, "get", "pod", "agent", "--output", "yaml"); strings.Contains(out, "proxy-secrets") {
		t.Error("the agent's pod refers to the proxy's Secret")
	}
	if out, _, _ := output(t, bottle(t, manifest("false", narrow), "egress", ns)); !strings.Contains(out, "KEY") || strings.Contains(out, secretValue) {
		t.Errorf("the log does not say which secret was inserted: %s", out)
	}

	// Control: with inject: false the agent gets the value, and so has its pod.
	// Without rules the other method arrives.
	agent = run("bottle-plain", manifest("false", "allowed.test"), "200")
	if got := strings.TrimSpace(agent(`echo "$KEY"`)); got != secretValue {
		t.Errorf("control: without injection the agent's variable is %q", got)
	}
}
