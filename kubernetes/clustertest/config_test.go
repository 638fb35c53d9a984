//go:build kube

package clustertest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	k8syaml "sigs.k8s.io/yaml"
)

// TestKubeConfig: bottle kube takes another context, whose token a program prints, as the tools
// of managed clusters do. With a wrong token it is refused.
func TestKubeConfig(t *testing.T) {
	text, err := os.ReadFile(os.Getenv("KUBECONFIG"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		Clusters []any `json:"clusters"`
		Users    []struct{ User struct{ Token string } }
	}
	if err := k8syaml.Unmarshal(text, &config); err != nil || len(config.Users) == 0 || config.Users[0].User.Token == "" {
		t.Fatalf("the cluster's kubeconfig: %v, %d users", err, len(config.Users))
	}
	user := func(name, token string) map[string]any {
		credential := fmt.Sprintf(`{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": %q}}`, token)
		return map[string]any{"name": name, "user": map[string]any{"exec": map[string]any{
			"apiVersion": "client.authentication.k8s.io/v1", "command": "echo", "args": []string{credential}, "interactiveMode": "Never",
		}}}
	}
	context := func(name string) map[string]any {
		return map[string]any{"name": name, "context": map[string]any{"cluster": "lab", "user": name}}
	}
	data, err := k8syaml.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Config", "clusters": config.Clusters, "current-context": "wrong",
		"users": []any{user("wrong", "x"), user("right", config.Users[0].User.Token)}, "contexts": []any{context("wrong"), context("right")},
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	list := func(args ...string) (string, int) {
		cmd := bottle(t, agentManifest, append([]string{"list", "--json"}, args...)...)
		cmd.Env = append(cmd.Env, "KUBECONFIG="+file)
		out, errs, code := output(t, cmd)
		return out + errs, code
	}
	if out, code := list("--context", "right"); code != 0 || !strings.HasPrefix(out, "[") {
		t.Errorf("with the context: exit code %d, %s", code, out)
	}
	if out, code := list(); code == 0 || !strings.Contains(out, "provide credentials") {
		t.Errorf("control: with a wrong token: exit code %d, %s", code, out)
	}
}

const insidePod = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: lister, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: lister}
rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: lister}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lister}
subjects: [{kind: ServiceAccount, name: lister, namespace: default}]
---
apiVersion: v1
kind: Pod
metadata: {name: lister, namespace: default}
spec:
  serviceAccountName: lister
  restartPolicy: Never
  containers: [{name: bottle, image: "lab.test/bottle:test", args: [/bottle, kube, list, --json]}]
`

// TestKubeInPod: in a pod, bottle kube uses the pod's service account.
func TestKubeInPod(t *testing.T) {
	t.Parallel()
	kubectl(t, insidePod, "apply", "-f", "-")
	t.Cleanup(func() { _, _ = tryKubectl(insidePod, "delete", "--wait=false", "-f", "-") })
	kubectl(t, "", "wait", "--for", "jsonpath={.status.phase}=Succeeded", "--timeout", "60s", "pod/lister")
	if out := kubectl(t, "", "logs", "lister"); !strings.HasPrefix(out, "[") {
		t.Errorf("bottle kube list in a pod: %s", out)
	}
}
