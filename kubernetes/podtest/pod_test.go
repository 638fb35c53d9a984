package podtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/bot-bottle/bottle/internal/labtest"
)

// Addresses of the node and of what a pod must not reach. They are on the loopback
// interface of a network namespace that stands in for the node and everything behind it.
const (
	nodeIP    = "192.0.2.10"
	apiIP     = "10.96.0.1"
	proxyIP   = "10.96.0.55" // the Service's
	gatewayIP = "10.244.3.1"
	podIP     = "10.244.3.7"
	allowedIP = "198.51.100.1" // the policy allows it
)

var victims = []string{
	nodeIP + ":10250", nodeIP + ":6443", apiIP + ":443", "169.254.169.254:80", "1.1.1.1:443", "[2606:4700:4700::1111]:443",
	gatewayIP + ":80", "[fd00:244::1]:80", allowedIP + ":80",
}

// report is what the agent of the test has found.
type report struct {
	UID               int
	Reached, Bound    []string // addresses; Bound: with SO_BINDTODEVICE
	Allowed, Refused  int      // status of the proxy's answers
	Token, Mode, Home string
	Prompt, Git       string
	Claude            json.RawMessage // its state
}

func TestMain(m *testing.M) {
	switch {
	case os.Args[0] == "/probe":
		probe(os.Args[1:])
	case os.Getenv(stageVar) == "hold":
		_, _ = io.Copy(io.Discard, os.Stdin) // keeps the pod's network namespace
	case os.Getenv(stageVar) == "node":
		os.Exit(labtest.Main(m))
	default:
		os.Exit(inNewNode())
	}
}

const stageVar = "BOTTLE_POD_TEST"

// inNewNode runs the tests in new network and mount namespaces, so that nothing of the
// machine's is changed.
func inNewNode() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageVar+"=node")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a new namespace (requires root):", err)
		return 1
	}
	return 0
}

const podManifest = `version: 1
bottles:
  dev:
    env: {TOKEN: {from: TOKEN}, MODE: "$(HOME) $x"}
    egress: {allow: ["198.51.100.1:80"], allow_private: [198.51.100.1]}
    proxy: {kind: builtin}
    git: {name: A Name, email: a@example.com}
agents:
  impl: {kind: claude, bottle: dev, prompt: Do it., command: [/probe, %s]}
`

// export runs `bottle export kubernetes` and returns its objects by kind and name.
func export(t *testing.T, program string) map[string][]byte {
	t.Helper()
	dir := t.TempDir()
	quoted := make([]string, len(victims))
	for i, v := range victims {
		quoted[i] = fmt.Sprintf("%q", v)
	}
	text := fmt.Sprintf(podManifest, strings.Join(quoted, ", "))
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "export", "kubernetes", "impl", "--image-prefix", "registry.example")
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v, %s", err, &stderr)
	}
	objects := map[string][]byte{}
	for _, doc := range strings.Split(string(out), "\n---\n")[1:] {
		var head struct {
			Kind     string
			Metadata struct{ Name string }
		}
		if err := k8syaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatal(err)
		}
		objects[head.Kind+" "+head.Metadata.Name] = []byte(doc)
	}
	return objects
}

// configMap writes the data of a ConfigMap as kubelet mounts it.
func configMap(t *testing.T, doc []byte) string {
	t.Helper()
	var m corev1.ConfigMap
	if err := k8syaml.UnmarshalStrict(doc, &m); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for key, value := range m.Data {
		if err := os.WriteFile(filepath.Join(dir, key), []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// startProxy runs the command of the proxy's container on the Service's address.
func startProxy(t *testing.T, program, config string, spec corev1.Container) {
	t.Helper()
	var args []string
	for _, arg := range spec.Command[1:] {
		arg = expand(arg, map[string]string{"POD_IP": proxyIP})
		args = append(args, strings.ReplaceAll(arg, "/config", config))
	}
	var log bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("the proxy's log:\n%s", &log)
		}
	})
}

// TestPod runs the init containers and the agent of an export under gVisor, where nothing
// enforces a NetworkPolicy. With the walls the agent reaches its proxy only; without them
// the gate keeps it from starting, for as long as anything else answers.
func TestPod(t *testing.T) {
	program := labtest.Program(t)
	objects := export(t, program)
	var agent corev1.Pod
	if err := k8syaml.UnmarshalStrict(objects["Pod agent"], &agent); err != nil {
		t.Fatal(err)
	}
	var proxy struct {
		Spec struct {
			Template struct{ Spec corev1.PodSpec }
		}
	}
	if err := k8syaml.Unmarshal(objects["Deployment proxy"], &proxy); err != nil {
		t.Fatal(err)
	}
	setUpNode(t)
	for _, addr := range victims {
		serve(t, addr)
	}
	startProxy(t, program, configMap(t, objects["ConfigMap proxy-config"]), proxy.Spec.Template.Spec.Containers[0])
	files := configMap(t, objects["ConfigMap agent-files"])

	t.Run("with walls", func(t *testing.T) {
		p := newPod(t, program, agent, files)
		for _, c := range agent.Spec.InitContainers {
			if out, code := p.run(c); code != 0 {
				t.Fatalf("%s: exit code %d, %s", c.Name, code, out)
			}
		}
		got := p.agentReport()
		if len(got.Reached) > 0 || len(got.Bound) > 0 {
			t.Errorf("the agent reaches %v, and with SO_BINDTODEVICE %v", got.Reached, got.Bound)
		}
		checkReport(t, got)
		// The agent cannot undo it, not even with bottle's own program.
		undo := agent.Spec.InitContainers[1]
		undo.Name, undo.SecurityContext = "undo", agent.Spec.InitContainers[0].SecurityContext
		undo.Command = []string{"/bottle", "k8s-walls", "--proxy", apiIP}
		if out, code := p.run(undo); code == 0 {
			t.Errorf("the routes were changed: %s", out)
		}
	})
	t.Run("without walls", func(t *testing.T) {
		p := newPod(t, program, agent, files)
		inits := slices.DeleteFunc(slices.Clone(agent.Spec.InitContainers), func(c corev1.Container) bool { return c.Name == "walls" })
		if out, code := p.run(inits[0]); code != 0 {
			t.Fatalf("%s: exit code %d, %s", inits[0].Name, code, out)
		}
		out := p.runUntil(inits[1], "waiting: no NetworkPolicy is enforced")
		for _, addr := range victims[:6] {
			if !strings.Contains(out, addr) {
				t.Errorf("the gate does not report %s: %s", addr, out)
			}
		}
		got := p.agentReport() // control: it would reach everything
		if !slices.Equal(got.Reached, victims) || !slices.Equal(got.Bound, victims) {
			t.Errorf("control: the agent reaches %v, and with SO_BINDTODEVICE %v; want all", got.Reached, got.Bound)
		}
	})
}

// checkReport checks what the agent has found besides the network.
func checkReport(t *testing.T, got report) {
	t.Helper()
	if got.Allowed != http.StatusOK || got.Refused != http.StatusForbidden {
		t.Errorf("through the proxy: %d for the allowed host, %d for another one", got.Allowed, got.Refused)
	}
	if got.UID != 1000 || got.Token != "hunter2" || got.Mode != "$(HOME) $x" || got.Prompt != "Do it." {
		t.Errorf("the agent's user %d, TOKEN %q, MODE %q, prompt %q", got.UID, got.Token, got.Mode, got.Prompt)
	}
	if !strings.Contains(got.Git, "A Name") || !strings.Contains(string(got.Claude), "hasCompletedOnboarding") {
		t.Errorf("the home's files: git %q, Claude Code %s", got.Git, got.Claude)
	}
}

// serve answers HTTP requests on an address.
func serve(t *testing.T, addr string) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	if strings.HasPrefix(addr, allowedIP) {
		s.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") })
	}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
}
