package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v4"
)

// TestStatus: what bottle kube list says of a pod.
func TestStatus(t *testing.T) {
	for _, c := range []struct {
		status, want   string
		running, ended bool
		code           int
	}{
		{`{"phase": "Pending"}`, "starting", false, false, 0},
		{`{"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}`, "starting, no node: 0/3 nodes are available", false, false, 0},
		{`{"phase": "Pending", "initContainerStatuses": [{"name": "files", "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]}`, "starting, files: ErrImagePull: not found", false, false, 0},
		{`{"phase": "Pending", "initContainerStatuses": [{"name": "files", "state": {"terminated": {"exitCode": 0}}}, {"name": "gate", "state": {"running": {}}}],
		  "containerStatuses": [{"name": "agent", "state": {"waiting": {"reason": "PodInitializing"}}}]}`, "starting, gate", false, false, 0},
		{`{"phase": "Pending", "initContainerStatuses": [{"name": "walls", "state": {"terminated": {"exitCode": 125}}}]}`, "starting, walls failed (125)", false, false, 0},
		{`{"phase": "Running", "containerStatuses": [{"name": "agent", "state": {"running": {}}}]}`, "running", true, false, 0},
		{`{"phase": "Failed", "containerStatuses": [{"name": "agent", "state": {"terminated": {"exitCode": 3}}}]}`, "exited (3)", false, true, 3},
		// The container with the work, or one that the cluster has added, outlives the agent's.
		{`{"phase": "Running", "containerStatuses": [{"name": "agent", "state": {"terminated": {"exitCode": 3}}}, {"name": "work", "state": {"running": {}}}]}`, "exited (3)", false, true, 3},
		{`{"phase": "Pending", "containerStatuses": [{"name": "agent", "state": {"waiting": {"reason": "CreateContainerError"}}}, {"name": "work", "state": {"running": {}}}]}`, "starting, agent: CreateContainerError", false, false, 0},
		{`{"phase": "Failed", "initContainerStatuses": [{"name": "walls", "state": {"terminated": {"exitCode": 125}}}]}`, "failed, walls failed (125)", false, true, 1},
		{`{"phase": "Failed", "reason": "Evicted"}`, "failed", false, true, 1},
	} {
		var p pod
		if err := json.Unmarshal([]byte(`{"metadata": {"namespace": "bottle-x", "labels": {"app.kubernetes.io/instance": "x"}}, "status": `+c.status+`}`), &p); err != nil {
			t.Fatal(err)
		}
		a := p.agent()
		if a.Status != c.want || a.Running != c.running || a.Ended != c.ended || a.Code != c.code || a.Name != "bottle-x" || a.Agent != "x" {
			t.Errorf("%s: %+v, want %q", c.status, a, c.want)
		}
	}
}

// TestFollow: a watch reports changes until the caller has seen enough, and that the agent
// was removed.
func TestFollow(t *testing.T) {
	const running = `{"type": "MODIFIED", "object": {"status": {"containerStatuses": [{"name": "agent", "state": {"running": {}}}]}}}`
	seen := 0
	a, ok, err := follow(bytes.NewReader([]byte(`{"type": "ADDED", "object": {}}`+running+running)), func(a Agent) bool { seen++; return a.Running })
	if err != nil || !ok || !a.Running || seen != 2 {
		t.Errorf("%+v, %v, %v, %d changes", a, ok, err, seen)
	}
	if _, ok, err := follow(bytes.NewReader([]byte(`{"type": "DELETED", "object": {}}`)), func(Agent) bool { return true }); ok || !errors.Is(err, ErrNotFound) {
		t.Errorf("after a removal: %v, %v", ok, err)
	}
}

// TestDocuments: every object of an export has a path.
func TestDocuments(t *testing.T) {
	files, err := filepath.Glob("../kubernetes/testdata/*.golden.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		docs := documents(text)
		for i, doc := range docs {
			var o object
			if err := yaml.Unmarshal(doc, &o); err != nil {
				t.Fatal(err)
			}
			path, err := o.path()
			if err != nil || o.Metadata.Name == "" || (o.Kind == "Namespace") != (i == 0) {
				t.Errorf("%s: object %d: %+v, %s, %v", file, i, o, path, err)
			}
			if i == 0 && path != "/api/v1/namespaces" {
				t.Errorf("the path of a namespace: %s", path)
			}
		}
		if len(docs) < 8 {
			t.Errorf("%s: %d objects", file, len(docs))
		}
	}
}

// TestNoCluster: without a kubeconfig the error says what is missing.
func TestNoCluster(t *testing.T) {
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if _, err := Connect(""); err == nil {
		t.Error("a cluster was found")
	}
	if _, err := Connect("no-such-context"); err == nil {
		t.Error("a context was found")
	}
}
