//go:build kube

package clustertest

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	k8syaml "sigs.k8s.io/yaml"
)

// Addresses of the cluster of scripts/kube, and of the world around it (scripts/world).
const (
	nodeIP     = "10.88.0.2"
	nodeIPv6   = "fd00:244::1" // of the pods' gateway
	gatewayIP  = "10.244.0.1"  // of the pods: the node again
	apiService = "10.96.0.1:443"
	dnsService = "10.96.0.10:53"
	victimPort = "8080"
)

const secretValue = "hunter2-on-the-cluster"

// agentManifest is an agent that shows what it has found, and then waits for commands.
const agentManifest = `version: 1
bottles:
  dev:
    image: lab.test/agent:test
    env: {TOKEN: {from: TOKEN}, MODE: "$(HOME) $x"}
    egress: {allow: [allowed.test, git.allowed.test]}
    proxy: {kind: builtin}
    git: {name: A Name, email: a@example.com}
    limits: {memory: 512m, disk: 1g}
agents:
  impl:
    bottle: dev
    kind: claude
    prompt: Do it.
    command: [bash, -c, 'cat "$BOTTLE_PROMPT_FILE"; echo "[$MODE]"; git clone -q https://git.allowed.test/demo.git work && git --no-pager -C work log -1 --format=cloned-%an; curl -sS https://refused.test/; echo "looked around"; exec sleep infinity']
`

// cluster is what the tests share.
type cluster struct {
	helper string // program
	pod    string // address of another pod
	dns    string // address of the DNS service's pod
}

// kubectl runs a command of kubectl and returns its output.
func kubectl(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := tryKubectl(stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func tryKubectl(stdin string, args ...string) (string, error) {
	cmd := exec.Command("kubectl", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("kubectl %s: %w\n%s%s", strings.Join(args, " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// export runs `bottle export kubernetes`.
func export(t *testing.T, manifest, namespace string, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"export", "kubernetes", "impl", "--namespace", namespace, "--bottle-image", "lab.test/bottle:test"}, flags...)
	cmd := exec.Command("bottle", args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v, %s", err, &stderr)
	}
	return string(out)
}

// create runs the commands of the comment at the top of an export, as a user does.
func create(t *testing.T, objects string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(file, []byte(objects), 0o600); err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(objects, "in bash:\n")
	commands, _, ok2 := strings.Cut(rest, "# Use it:")
	if !ok || !ok2 {
		t.Fatalf("no commands in %s", objects)
	}
	script := strings.ReplaceAll(regexp.MustCompile(`(?m)^# `).ReplaceAllString(commands, ""), "FILE", file+" --validate=strict")
	cmd := exec.Command("bash", "-euc", script)
	cmd.Env = append(os.Environ(), "TOKEN="+secretValue)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
}

// without returns the objects without an init container of the agent's pod.
func without(t *testing.T, objects, init string) string {
	t.Helper()
	head, agent, ok := strings.Cut(objects, "\n---\napiVersion: v1\nkind: Pod\n")
	if !ok {
		t.Fatalf("no pod in %s", objects)
	}
	var pod map[string]any
	if err := k8syaml.Unmarshal([]byte("apiVersion: v1\nkind: Pod\n"+agent), &pod); err != nil {
		t.Fatal(err)
	}
	spec := pod["spec"].(map[string]any)
	spec["initContainers"] = slices.DeleteFunc(spec["initContainers"].([]any), func(c any) bool { return c.(map[string]any)["name"] == init })
	text, err := k8syaml.Marshal(pod)
	if err != nil {
		t.Fatal(err)
	}
	return head + "\n---\n" + string(text)
}

// ready waits for the agent's pod.
func (c *cluster) ready(t *testing.T, namespace string) {
	t.Helper()
	if _, err := tryKubectl("", "--namespace", namespace, "wait", "--for", "condition=Ready", "--timeout", "90s", "pod/agent"); err != nil {
		state, _ := tryKubectl("", "--namespace", namespace, "describe", "pods")
		gate, _ := tryKubectl("", "--namespace", namespace, "logs", "agent", "-c", "gate")
		t.Fatalf("%v\n%s\ngate: %s", err, state, gate)
	}
}

// waitLog waits for a text in the log of a container.
func waitLog(t *testing.T, want string, args ...string) string {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for {
		out, err := tryKubectl("", append([]string{"logs"}, args...)...)
		if err == nil && strings.Contains(out, want) {
			return out
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in the log: %v, %s", want, err, out)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// found is what the agent's pod reaches: names of victims, without and with
// SO_BINDTODEVICE.
type found struct{ Reached, Bound []string }

// victim is what an agent must not reach.
type victim struct{ name, addr string }

// victims returns them, by address and by Service. Each of them answers (scripts/kube,
// scripts/world), as the control shows.
func (c *cluster) victims(t *testing.T, namespace string) []victim {
	t.Helper()
	return []victim{
		{"kubelet", nodeIP + ":10250"}, {"API by node", nodeIP + ":6443"}, {"node", nodeIP + ":" + victimPort},
		{"kubelet by gateway", gatewayIP + ":10250"}, {"node by gateway", gatewayIP + ":" + victimPort},
		{"API by Service", apiService}, {"DNS by Service", dnsService}, {"DNS by Service, UDP", "udp/" + dnsService},
		{"DNS by pod", c.dns + ":53"}, {"DNS by pod, UDP", "udp/" + c.dns + ":53"},
		{"metadata", "169.254.169.254:80"}, {"another pod", c.pod + ":" + victimPort},
		{"private host", "10.99.0.10:22"}, {"private network", "192.168.99.10:9999"},
		{"world", "8.8.8.8:443"}, {"world, allowed host without proxy", "198.51.101.11:443"}, {"world, DNS, UDP", "udp/198.51.101.53:53"},
		{"IPv6", "[" + nodeIPv6 + "]:" + victimPort}, {"IPv6 link-local", c.linkLocal(t, namespace)},
	}
}

// addresses returns those of victims.
func addresses(victims []victim) []string {
	out := make([]string, len(victims))
	for i, v := range victims {
		out[i] = v.addr
	}
	return out
}

// named returns the names of the victims with these addresses.
func named(victims []victim, addrs []string) []string {
	out := []string{}
	for _, v := range victims {
		if slices.Contains(addrs, v.addr) {
			out = append(out, v.name)
		}
	}
	return out
}

// linkLocal returns the IPv6 address of the node on the link to the agent's pod.
func (c *cluster) linkLocal(t *testing.T, namespace string) string {
	t.Helper()
	ip := kubectl(t, "", "--namespace", namespace, "get", "pod", "agent", "-o", "jsonpath={.status.podIP}")
	out, err := exec.Command("ip", "-json", "route", "get", ip).Output()
	if err != nil {
		t.Fatal(err)
	}
	var routes []struct{ Dev string }
	if err := json.Unmarshal(out, &routes); err != nil || len(routes) != 1 {
		t.Fatalf("%v, %s", err, out)
	}
	link, err := net.InterfaceByName(routes[0].Dev)
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := link.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsLinkLocalUnicast() && n.IP.To4() == nil {
			return "[" + n.IP.String() + "%eth0]:" + victimPort
		}
	}
	t.Fatalf("%s has no link-local address: %v", link.Name, addrs)
	return ""
}

// probe makes the attempts from the agent's container, as the agent's user.
func (c *cluster) probe(t *testing.T, namespace string, victims []victim) (f found) {
	t.Helper()
	program, err := os.Open(c.helper)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = program.Close() }() // read only
	in := []string{"--namespace", namespace, "exec", "-i", "agent", "-c", "agent", "--"}
	copy := exec.Command("kubectl", append(in, "sh", "-c", "cat >/tmp/helper && chmod +x /tmp/helper")...)
	copy.Stdin = program
	if out, err := copy.CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	out := kubectl(t, "", append(append(in, "/tmp/helper", "probe"), addresses(victims)...)...)
	if err := json.Unmarshal([]byte(out), &f); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	f.Reached, f.Bound = named(victims, f.Reached), named(victims, f.Bound)
	return f
}

// enforcer starts what enforces NetworkPolicies. The function that is returned stops it, and
// removes its rules.
func enforcer(t *testing.T) (stop func()) {
	t.Helper()
	log, err := os.Create(filepath.Join(os.Getenv("KUBE_NODE"), "log", "netpol.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("netpol", os.Getenv("KUBECONFIG"))
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		_ = log.Close()
		for _, args := range [][]string{{"iptables", "-F"}, {"iptables", "-X"}, {"ipset", "destroy"}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Errorf("%v: %v, %s", args, err, out)
			}
		}
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("the enforcer's log:\n%s", text)
		}
	}
	return stop
}

func (c *cluster) delete(t *testing.T, namespace string) {
	t.Helper()
	kubectl(t, "", "delete", "namespace", namespace, "--wait=false")
}

// TestCluster runs the same agent four ways on one cluster: enclosed by nothing, by the walls
// in its pod, by the cluster's NetworkPolicy, and by both.
func TestCluster(t *testing.T) {
	c := &cluster{helper: helperProgram(t)}
	serve := exec.Command(c.helper, "serve", ":"+victimPort)
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = serve.Process.Kill()
		_ = serve.Wait() // it was killed
	})
	kubectl(t, victimPod, "apply", "-f", "-")
	kubectl(t, "", "wait", "--for", "condition=Ready", "--timeout", "60s", "pod/victim")
	c.pod = kubectl(t, "", "get", "pod", "victim", "-o", "jsonpath={.status.podIP}")
	c.dns = kubectl(t, "", "--namespace", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[0].status.podIP}")

	// Control: where nothing encloses the pod, the agent reaches everything.
	t.Run("nothing", func(t *testing.T) {
		const ns = "open"
		create(t, without(t, export(t, agentManifest, ns, "--no-walls"), "gate"))
		defer c.delete(t, ns)
		c.ready(t, ns)
		victims := c.victims(t, ns)
		all, got := named(victims, addresses(victims)), c.probe(t, ns, victims)
		if !slices.Equal(got.Reached, all) {
			t.Errorf("control: the agent does not reach %q", missing(all, got.Reached))
		}
		if !slices.Equal(got.Bound, all) {
			t.Errorf("control: with SO_BINDTODEVICE the agent does not reach %q", missing(all, got.Bound))
		}
	})
	t.Run("walls", func(t *testing.T) {
		const ns = "walls"
		objects := export(t, strings.Replace(agentManifest, "limits: {", "limits: {cpus: 0.8, ", 1), ns)
		if strings.Contains(objects, secretValue) {
			t.Error("the export contains a secret")
		}
		openAPI(t, objects)
		create(t, objects)
		defer c.delete(t, ns)
		c.ready(t, ns)
		c.enclosed(t, ns)
		c.agentWorks(t, ns)
		c.noSecrets(t, ns)
		c.limits(t, ns)
		for _, command := range []string{"ip route add default dev eth0", "ip address add fd00::1/64 dev eth0", "ip link set eth0 down"} {
			if out, err := tryKubectl("", "--namespace", ns, "exec", "agent", "-c", "agent", "--", "sh", "-c", command); err == nil {
				t.Errorf("the agent may run %s: %s", command, out)
			}
		}
	})
	t.Run("verdicts", verdicts)
	var stop func()
	t.Run("policy", func(t *testing.T) {
		const ns = "policy"
		objects := export(t, agentManifest, ns, "--no-walls")
		if !strings.Contains(objects, "enforce: restricted") {
			t.Error("without walls, the namespace does not have Pod Security's level restricted")
		}
		create(t, objects)
		defer c.delete(t, ns)
		_, pod, _ := strings.Cut(export(t, agentManifest, ns), "\n---\napiVersion: v1\nkind: Pod\n")
		pod = strings.Replace("apiVersion: v1\nkind: Pod\n"+pod, "name: agent", "name: walls", 1)
		if out, err := tryKubectl(pod, "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "violates PodSecurity") {
			t.Errorf("control: the level restricted admits a pod with walls: %v, %s", err, out)
		}
		// Nothing enforces policies yet: the agent must not start.
		out := waitLog(t, "waiting: no NetworkPolicy is enforced", "--namespace", ns, "agent", "-c", "gate")
		for _, addr := range []string{nodeIP + ":10250", nodeIP + ":6443", apiService, "169.254.169.254:80"} {
			if !strings.Contains(out, addr) {
				t.Errorf("the gate does not report %s: %s", addr, out)
			}
		}
		c.notStarted(t, ns)
		stop = enforcer(t)
		c.ready(t, ns)
		// This enforcer supports IPv4 only.
		c.enclosed(t, ns, "IPv6", "IPv6 link-local")
		c.agentWorks(t, ns)
	})
	if stop == nil {
		return
	}
	t.Run("both", func(t *testing.T) {
		const ns = "both"
		create(t, export(t, agentManifest, ns))
		defer c.delete(t, ns)
		c.ready(t, ns)
		c.enclosed(t, ns)
		c.agentWorks(t, ns)
	})
	stop()
	t.Run("enforcement removed", func(t *testing.T) {
		const ns = "removed"
		create(t, export(t, agentManifest, ns, "--no-walls"))
		defer c.delete(t, ns)
		waitLog(t, "waiting: no NetworkPolicy is enforced", "--namespace", ns, "agent", "-c", "gate")
		c.notStarted(t, ns)
	})
}

// notStarted checks that the container of an agent that nothing encloses was never started.
func (c *cluster) notStarted(t *testing.T, namespace string) {
	t.Helper()
	state := kubectl(t, "", "--namespace", namespace, "get", "pod", "agent", "-o",
		`jsonpath={.status.phase} {.status.containerStatuses[0].state.waiting.reason} [{.status.containerStatuses[0].containerID}]`)
	if state != "Pending PodInitializing []" {
		t.Errorf("where nothing encloses the pod, it is: %s", state)
	}
}

const victimPod = `
apiVersion: v1
kind: Pod
metadata: {name: victim}
spec:
  automountServiceAccountToken: false
  containers:
    - {name: victim, image: "lab.test/helper:test", command: [/helper, serve, ":8080"], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
`

func missing(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

// helperProgram returns the program of the cluster's own pods, for the node.
func helperProgram(t *testing.T) string {
	t.Helper()
	file := filepath.Join("/var/lib/bottle-lab", os.Getenv("LAB_ID"), "kube/images/helper/helper")
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("this test runs on the node of the cluster: sudo make test-kube, or scripts/kube up and scripts/kube exec -- go test -tags kube …: %v", err)
	}
	return file
}

// enclosed checks that the agent reaches none of the victims except those that are known.
func (c *cluster) enclosed(t *testing.T, namespace string, known ...string) {
	t.Helper()
	got := c.probe(t, namespace, c.victims(t, namespace))
	for _, reached := range [][]string{got.Reached, got.Bound} {
		if !slices.Equal(reached, append([]string{}, known...)) {
			t.Errorf("the agent reaches %q, want %q; with SO_BINDTODEVICE: %q", reached, known, got.Bound)
		}
	}
}

// agentWorks checks what the agent has printed, and the log of its proxy.
func (c *cluster) agentWorks(t *testing.T, namespace string) {
	t.Helper()
	out := waitLog(t, "looked around", "--namespace", namespace, "agent", "-c", "agent")
	for _, want := range []string{"Do it.", "[$(HOME) $x]", "cloned-", "403"} {
		if !strings.Contains(out, want) {
			t.Errorf("the agent does not print %q: %s", want, out)
		}
	}
	exec := func(command string) string {
		return kubectl(t, "", "--namespace", namespace, "exec", "agent", "-c", "agent", "--", "sh", "-c", command)
	}
	if out := exec("dmesg"); !strings.Contains(out, "gVisor") {
		t.Errorf("the agent does not run under gVisor: %s", out)
	}
	if out := exec(`id -u; echo "$TOKEN"; git config user.name; ls /var/run/secrets 2>&1 || true`); !strings.HasPrefix(out, "1000\n"+secretValue+"\nA Name\n") || strings.Contains(out, "kubernetes.io") {
		t.Errorf("the agent's user, variable, settings and tokens: %s", out)
	}
	log := kubectl(t, "", "--namespace", namespace, "logs", "deployment/proxy")
	for host, verdict := range map[string]string{"git.allowed.test": "tunnel_open", "refused.test": "blocked"} {
		if !slices.ContainsFunc(strings.Split(log, "\n"), func(line string) bool {
			return strings.Contains(line, host) && strings.Contains(line, verdict)
		}) {
			t.Errorf("the proxy's log has no line about %s that says %s: %s", host, verdict, log)
		}
	}
}

// verdicts sends the table of requests to the proxy of an export, which has the table's
// policy and names, and upstream servers on the node.
func verdicts(t *testing.T) {
	const ns = "verdicts"
	objects, _, ok := strings.Cut(export(t, agentManifest, ns), "\n---\napiVersion: v1\nkind: Pod\n")
	if !ok {
		t.Fatal("no pod in the export")
	}
	kubectl(t, objects, "apply", "-f", "-")
	defer kubectl(t, "", "delete", "namespace", ns, "--wait=false")
	dir := t.TempDir()
	table := func(args ...string) {
		t.Helper()
		cmd := exec.Command("go", append([]string{"run", "../../scripts/verdicts", "--upstream", nodeIP}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	table("--write", dir)
	config := kubectl(t, "", "--namespace", ns, "create", "configmap", "proxy-config", "--from-file", filepath.Join(dir, "proxy.json"), "--dry-run=client", "-o", "yaml")
	kubectl(t, config, "apply", "-f", "-")
	hosts, err := os.ReadFile(filepath.Join(dir, "hosts"))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string][]string{}
	for line := range strings.Lines(string(hosts)) {
		addr, name, _ := strings.Cut(strings.TrimSpace(line), "\t")
		names[addr] = append(names[addr], name)
	}
	aliases := []map[string]any{}
	for addr, list := range names {
		aliases = append(aliases, map[string]any{"ip": addr, "hostnames": list})
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": map[string]any{"spec": map[string]any{"hostAliases": aliases}}}})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, "", "--namespace", ns, "patch", "deployment", "proxy", "--patch", string(patch))
	kubectl(t, "", "--namespace", ns, "rollout", "status", "deployment/proxy", "--timeout", "60s")
	service := kubectl(t, "", "--namespace", ns, "get", "service", "proxy", "-o", "jsonpath={.spec.clusterIP}")
	table("--proxy", "http://"+service+":8888", "--same")
}

// noSecrets checks that of all objects of the cluster, of every kind that can be listed, only
// the Secret contains the value.
func (c *cluster) noSecrets(t *testing.T, namespace string) {
	t.Helper()
	kinds := strings.Fields(kubectl(t, "", "api-resources", "--verbs=list", "--output", "name"))
	kinds = slices.DeleteFunc(kinds, func(k string) bool { return k == "secrets" })
	for _, kind := range []string{"pods", "configmaps", "events", "replicasets.apps", "namespaces"} {
		if !slices.Contains(kinds, kind) {
			t.Errorf("control: %s are not among the kinds %q", kind, kinds)
		}
	}
	out := kubectl(t, "", "get", strings.Join(kinds, ","), "--all-namespaces", "--output", "yaml")
	if !strings.Contains(out, "name: agent-files") || !strings.Contains(out, "namespace: "+namespace) {
		t.Error("control: the objects of the agent are not among those that are searched")
	}
	for _, form := range []string{secretValue, base64.StdEncoding.EncodeToString([]byte(secretValue))} {
		if i := strings.Index(out, form); i >= 0 {
			t.Errorf("an object contains the secret's value: %s", out[max(0, i-500):i])
		}
	}
	// Control: the Secret does.
	if out := kubectl(t, "", "--namespace", namespace, "get", "secret", "agent-env", "-o", `go-template={{.data.TOKEN | base64decode}}`); out != secretValue {
		t.Errorf("control: the Secret contains %q", out)
	}
}

// limits checks that the node applies the limits of the agent to its pod as a whole, which is
// what binds gVisor: the agent's container has no process of its own on the node.
func (c *cluster) limits(t *testing.T, namespace string) {
	t.Helper()
	uid := kubectl(t, "", "--namespace", namespace, "get", "pod", "agent", "-o", "jsonpath={.metadata.uid}")
	file := func(names ...string) string {
		t.Helper()
		var found []string
		for _, name := range names {
			for _, parent := range []string{"", "*/"} {
				files, err := filepath.Glob("/sys/fs/cgroup/" + fmt.Sprintf(name, "kubepods/"+parent+"pod"+uid))
				if err != nil {
					t.Fatal(err)
				}
				found = append(found, files...)
			}
		}
		if len(found) != 1 {
			t.Fatalf("the files %q of the pod's cgroup: %q", names, found)
		}
		text, err := os.ReadFile(found[0])
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	if got := file("memory/%s/memory.limit_in_bytes", "%s/memory.max"); got != "536870912" {
		t.Errorf("the pod's limit of memory is %s, want 512 MiB", got)
	}
	// Microseconds in each period of 100 ms.
	if got := file("cpu/%s/cpu.cfs_quota_us", "%s/cpu.max"); got != "80000" && got != "80000 100000" {
		t.Errorf("the pod's limit of processors is %s, want 0.8", got)
	}
}
