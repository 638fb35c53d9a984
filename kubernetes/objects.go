package kubernetes

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/provision"
)

// Paths in the pods.
const (
	configDir = "/config" // of the proxy, and of the agent's files as they are delivered
	program   = "/bottle" // bottle in its own image

	rootsDir  = "/roots"  // the authorities that verify the hosts
	bundleDir = "/bundle" // those that the agent trusts
	bundleKey = "ca-certificates.crt"
	rootsName = "roots"
	rootsKey  = "roots.pem"
)

// Texts that kubelet expands in variables and arguments. Service variables need no DNS.
const (
	podIP     = "$(POD_IP)"
	nodeIP    = "$(NODE_IP)"
	proxyHost = "$(PROXY_SERVICE_HOST)"
	apiHost   = "$(KUBERNETES_SERVICE_HOST)"
	apiPort   = "$(KUBERNETES_SERVICE_PORT)"
)

var proxyAddress = proxyHost + ":" + strconv.Itoa(segment.ProxyPort)

// closedToAgent is what the gate dials: if one of them answers, nothing encloses the pod.
// The last two are public resolvers, which answer on port 443 everywhere.
var closedToAgent = []string{
	nodeIP + ":10250", nodeIP + ":6443", apiHost + ":" + apiPort, "169.254.169.254:80",
	"1.1.1.1:443", "[2606:4700:4700::1111]:443",
}

// Memory of bottle's own containers in the agent's pod.
const smallMemory int64 = 128 << 20

// Limits of the container that makes the work accessible.
const (
	holdMemory int64 = 64 << 20
	holdCPUs         = 0.1
)

const workVolume = "work"

func (e *export) labels(component string) map[string]string {
	out := map[string]string{"app.kubernetes.io/name": "bottle", "app.kubernetes.io/instance": e.slug}
	if component != "" {
		out["app.kubernetes.io/component"] = component
	}
	return out
}

func (e *export) meta(name, component string) metadata {
	return metadata{Name: name, Namespace: e.opt.Namespace, Labels: e.labels(component)}
}

func (e *export) podsOf(component string) selector { return selector{MatchLabels: e.labels(component)} }

// objects returns what to create, in this order: a pod gets the variables of Services that
// exist, and policies should be in force before there is a pod that they bind.
func (e *export) objects() ([]object, error) {
	config, file, err := e.proxyConfig()
	if err != nil {
		return nil, err
	}
	files, err := e.files()
	if err != nil {
		return nil, err
	}
	policies, err := e.policies()
	if err != nil {
		return nil, err
	}
	no := false
	ns := metadata{Name: e.opt.Namespace, Labels: e.labels("")}
	ns.Labels["pod-security.kubernetes.io/enforce"] = e.level()
	out := []object{
		{APIVersion: "v1", Kind: "Namespace", Metadata: ns},
		{APIVersion: "v1", Kind: "ServiceAccount", Metadata: e.meta("bottle", ""), Automount: &no},
	}
	out = append(out, policies...)
	if e.opt.Trust != nil {
		out = append(out, object{APIVersion: "v1", Kind: "ConfigMap", Metadata: e.meta(rootsName, ""), Data: map[string]string{rootsKey: string(e.opt.Trust.Roots)}})
	}
	return append(out,
		object{APIVersion: "v1", Kind: "ConfigMap", Metadata: e.meta("proxy-config", proxyName), Data: map[string]string{file: string(config)}},
		files,
		object{APIVersion: "v1", Kind: "Service", Metadata: e.meta(proxyName, proxyName), Spec: serviceSpec{
			Type: "ClusterIP", Selector: e.labels(proxyName),
			Ports: []servicePort{{Name: "proxy", Protocol: "TCP", Port: segment.ProxyPort, TargetPort: segment.ProxyPort}},
		}},
		e.proxy(config, file),
		e.agent(),
	), nil
}

// level is the Pod Security level that the namespace needs.
func (e *export) level() string {
	if e.opt.NoWalls {
		return "restricted"
	}
	return "privileged" // CAP_NET_ADMIN of the walls
}

// proxyConfig returns the configuration of the proxy and the name of its file.
func (e *export) proxyConfig() (data []byte, file string, err error) {
	p := e.plan
	if p.Proxy.Kind == manifest.ProxyPipelock {
		policy, err := p.Entries().Policy()
		if err != nil {
			return nil, "", err
		}
		data, err = policy.Render(p.Proxy.Version)
		return data, "pipelock.yaml", err
	}
	// The proxy listens on its pod's address, which --listen says.
	config := egress.Config{Entries: p.Entries(), SelfNames: []string{p.Provisions().Hostname}}
	if e.opt.Trust != nil {
		config.Inject = &egress.Inject{Secrets: configDir + "/" + SecretsKey, Roots: configDir + "/" + rootsKey}
	}
	data, err = json.MarshalIndent(config, "", "  ")
	return append(data, '\n'), "proxy.json", err
}

func (e *export) proxy(config []byte, file string) object {
	p := e.plan.Proxy
	c := container{
		Name: proxyName, Image: e.bottle,
		Command:   []string{program, "proxy", "--config", configDir + "/" + file, "--listen", podIP + ":" + strconv.Itoa(segment.ProxyPort)},
		Env:       []envVar{field("POD_IP", "status.podIP")},
		Ports:     []containerPort{{Name: "proxy", Port: segment.ProxyPort, Protocol: "TCP"}},
		Resources: limits(max(p.Memory, egress.BuiltinMemory), proxyCPUs(e.plan.Limits.CPUs), 0),
		Ready:     &probe{HTTP: httpGet{Path: "/health", Port: segment.ProxyPort}, Period: 2},
		Security:  containerSecurity{ReadOnlyRoot: true, Capabilities: capabilities{Drop: []string{"ALL"}}},
		Mounts:    []mount{{Name: "config", Path: configDir, ReadOnly: true}},
	}
	if p.Kind == manifest.ProxyPipelock {
		memory := max(p.Memory, egress.PipelockMemory)
		name, value, _ := strings.Cut(egress.PipelockEnv(memory), "=")
		c.Image, c.Command = pinned(p.Image, p.Digest), nil
		c.Args = []string{"run", "--listen", "0.0.0.0:" + strconv.Itoa(segment.ProxyPort), "--config", configDir + "/" + file}
		c.Env = []envVar{{Name: name, Value: &value}}
		c.Resources = limits(memory, proxyCPUs(e.plan.Limits.CPUs), 0)
	}
	files := volume{Name: "config", ConfigMap: &configMapVolume{Name: "proxy-config"}}
	if e.opt.Trust != nil {
		// One directory: the proxy confines itself to that of its configuration.
		files = volume{Name: "config", Projected: &projectedVolume{[]projection{
			{ConfigMap: &objectName{"proxy-config"}}, {ConfigMap: &objectName{rootsName}}, {Secret: &objectName{ProxySecret}},
		}}}
	}
	sum := sha256.Sum256(config)
	return object{APIVersion: "apps/v1", Kind: "Deployment", Metadata: e.meta(proxyName, proxyName), Spec: deploymentSpec{
		Replicas: 1,
		// Two proxies would have two logs and twice the limits.
		Strategy: typed{"Recreate"},
		Selector: e.podsOf(proxyName),
		Template: podTemplate{
			// A changed policy replaces the pod.
			Metadata: metadata{Labels: e.labels(proxyName), Annotations: map[string]string{"bottle/config-sha256": hex.EncodeToString(sum[:])}},
			Spec: podSpec{
				ServiceAccount: "bottle",
				// One lookup for each name: the cluster's search list would be tried first.
				DNSConfig:  &dnsConfig{Options: []dnsOption{{Name: "ndots", Value: "1"}}},
				Security:   podSecurity{RunAsNonRoot: true, RunAsUser: proxyUID, RunAsGroup: proxyUID, Seccomp: typed{"RuntimeDefault"}},
				Containers: []container{c},
				Volumes:    []volume{files},
			},
		},
	}}
}

// pinned returns a reference with its digest, if it is known.
func pinned(ref, digest string) string {
	if digest == "" || strings.Contains(ref, "@") {
		return ref
	}
	return ref + "@" + digest
}

func field(name, path string) envVar {
	return envVar{Name: name, ValueFrom: &envSource{Field: &fieldRef{Path: path}}}
}

// proxyCPUs is the agent's limit, if it has one: it must not use more through its proxy,
// which needs half a processor to answer in time.
func proxyCPUs(agent float64) float64 {
	if agent == 0 {
		return 0
	}
	return max(agent, 0.5)
}

func limits(memory int64, cpus float64, disk int64) resources {
	r := resources{Limits: map[string]string{"memory": quantity(memory)}}
	if cpus > 0 {
		r.Limits["cpu"] = strconv.FormatInt(int64(cpus*1000+0.5), 10) + "m"
	}
	if disk > 0 {
		r.Limits["ephemeral-storage"] = quantity(disk)
	}
	return r
}

func quantity(bytes int64) string {
	for _, unit := range []struct {
		shift int
		name  string
	}{{30, "Gi"}, {20, "Mi"}} {
		if n := bytes >> unit.shift; n<<unit.shift == bytes && n > 0 {
			return strconv.FormatInt(n, 10) + unit.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}

// agent returns the agent's pod, or the Sandbox of it. Its init containers run in this order: the files, which
// need no network, the walls, and the gate, which verifies what encloses the pod.
func (e *export) agent() object {
	p := e.plan
	small := containerSecurity{ReadOnlyRoot: true, Capabilities: capabilities{Drop: []string{"ALL"}}}
	inits := []container{{
		Name: "files", Image: e.bottle, Command: []string{program, "k8s-files", "--from", configDir, "--to", provision.GuestDir},
		Resources: e.small(), Security: small,
		Mounts: []mount{{Name: "files", Path: configDir, ReadOnly: true}, {Name: "bottle", Path: provision.GuestDir}},
	}}
	if !e.opt.NoWalls {
		root, no := int64(0), false
		inits = append(inits, container{
			Name: "walls", Image: e.bottle, Command: []string{program, "k8s-walls", "--proxy", proxyHost},
			Resources: e.small(),
			Security: containerSecurity{
				RunAsNonRoot: &no, RunAsUser: &root, RunAsGroup: &root, ReadOnlyRoot: true,
				Capabilities: capabilities{Drop: []string{"ALL"}, Add: []string{"NET_ADMIN"}},
			},
		})
	}
	gate := []string{program, "k8s-gate", "--proxy", proxyAddress}
	for _, addr := range closedToAgent {
		gate = append(gate, "--closed", addr)
	}
	inits = append(inits, container{
		Name: "gate", Image: e.bottle, Command: gate, Env: []envVar{field("NODE_IP", "status.hostIP")},
		Resources: e.small(), Security: small,
	})
	command := []string{provision.GuestDir + program, "k8s-start", "--"}
	for _, arg := range p.Command {
		command = append(command, literal(arg))
	}
	spec := podSpec{
		RuntimeClass: runtimeName, Hostname: p.Provisions().Hostname, ServiceAccount: "bottle", ServiceLinks: true,
		RestartPolicy: "Never",
		// The proxy resolves names.
		DNSPolicy: "None", DNSConfig: &dnsConfig{Nameservers: []string{"127.0.0.1"}},
		Security:       podSecurity{RunAsNonRoot: true, RunAsUser: agentUID, RunAsGroup: agentUID, FSGroup: agentUID, Seccomp: typed{"RuntimeDefault"}},
		InitContainers: inits,
		Containers: []container{{
			Name: agentName, Image: e.image, Command: command, Stdin: true, TTY: true,
			Env: e.environ(), Resources: limits(p.Limits.Memory, p.Limits.CPUs, p.Limits.Disk),
			Security: containerSecurity{Capabilities: capabilities{Drop: []string{"ALL"}}},
			Mounts:   []mount{{Name: "bottle", Path: provision.GuestDir, ReadOnly: true}, {Name: "run", Path: provision.GuestRun}},
		}},
		Volumes: []volume{
			{Name: "files", ConfigMap: &configMapVolume{Name: filesName}},
			{Name: "bottle", EmptyDir: &emptyDir{Size: "256Mi"}},
			// What must not be on a disk.
			{Name: "run", EmptyDir: &emptyDir{Medium: "Memory", Size: "16Mi"}},
		},
	}
	meta := e.meta(agentName, agentName)
	if e.opt.Trust != nil {
		e.addTrust(&spec)
	}
	if e.repo.URL != "" {
		e.addRepo(&spec)
		meta.Annotations = map[string]string{repoAnnotation: e.repo.URL, workAnnotation: e.repo.Dir}
	}
	if e.opt.Sandbox {
		return object{APIVersion: "agents.x-k8s.io/v1beta1", Kind: "Sandbox", Metadata: e.meta(agentName, agentName), Spec: sandboxSpec{
			Template: podTemplate{Metadata: metadata{Labels: meta.Labels, Annotations: meta.Annotations}, Spec: spec},
		}}
	}
	return object{APIVersion: "v1", Kind: "Pod", Metadata: meta, Spec: spec}
}

// small are the limits of bottle's own containers in the agent's pod. They have one of
// processors if the agent has one: kubelet limits a pod's processors only if all of its
// containers, also those that have ended, are limited, and under gVisor it is the pod's
// limit that holds.
func (e *export) small() resources { return limits(smallMemory, e.plan.Limits.CPUs, 0) }

// addTrust gives the agent's container a file of authorities, in place of the image's, that has
// the proxy's too. It is made in a container of the same image, before all that use it.
func (e *export) addTrust(spec *podSpec) {
	agent := &spec.Containers[0]
	guest := agent.Mounts[0]
	spec.InitContainers = append(spec.InitContainers, container{
		Name: "trust", Image: e.image, Resources: e.small(), Security: agent.Security,
		Command: []string{provision.GuestDir + program, "k8s-trust", "--roots", rootsDir + "/" + rootsKey, "--out", bundleDir + "/" + bundleKey},
		Mounts:  []mount{guest, {Name: rootsName, Path: rootsDir, ReadOnly: true}, {Name: "bundle", Path: bundleDir}},
	})
	agent.Mounts = append(agent.Mounts, mount{Name: "bundle", Path: provision.SystemBundles()[0], SubPath: bundleKey, ReadOnly: true})
	spec.Volumes = append(spec.Volumes, volume{Name: rootsName, ConfigMap: &configMapVolume{Name: rootsName}}, volume{Name: "bundle", EmptyDir: &emptyDir{Size: "16Mi"}})
}

// addRepo adds the clone of a repository to the agent's pod, and a container in which the
// work is accessible for as long as the pod exists: nothing can be started in a container
// that has ended. It has none of the agent's variables.
func (e *export) addRepo(spec *podSpec) {
	agent := &spec.Containers[0]
	work := mount{Name: workVolume, Path: workDir}
	own := []string{provision.GuestDir + program}
	clone := container{
		Name: "clone", Image: e.image, Env: agent.Env, Security: agent.Security, Resources: agent.Resources,
		Command: append(own, "k8s-clone", "--dir", literal(e.repo.Dir), "--branch", Branch(e.opt.Namespace), "--", literal(e.repo.URL)),
		Mounts:  append([]mount{work}, agent.Mounts...),
	}
	// After the gate: the proxy answers, and nothing else is reached.
	spec.InitContainers = append(spec.InitContainers, clone)
	agent.Mounts, agent.WorkingDir = append(agent.Mounts, work), e.repo.Dir
	hold := container{
		Name: workContainer, Image: e.image, Command: append(own, "k8s-hold"), WorkingDir: e.repo.Dir,
		// The pod's limits are the sums, and the agent should have what its own says.
		Resources: limits(holdMemory, min(e.plan.Limits.CPUs, holdCPUs), 0), Security: agent.Security,
		Mounts: []mount{work, agent.Mounts[0]},
	}
	spec.Containers = append(spec.Containers, hold)
	spec.Volumes = append(spec.Volumes, volume{Name: workVolume, EmptyDir: &emptyDir{Size: quantity(e.plan.Limits.Disk)}})
}

// literal escapes a text in which kubelet would expand variables.
func literal(text string) string { return strings.ReplaceAll(text, "$", "$$") }

// environ returns the agent's variables. They also reach commands that kubectl exec starts.
// The image's own are not known here, and are overridden by the agent's defaults.
func (e *export) environ() []envVar {
	agent := e.plan.Provisions()
	agent.Address, agent.ProxyHost = podIP, proxyHost
	if e.opt.Trust != nil {
		agent.Trust = *e.opt.Trust
	}
	var out []envVar
	add := func(v envVar) {
		for i, old := range out {
			if old.Name == v.Name {
				out[i] = v
				return
			}
		}
		out = append(out, v)
	}
	add(field("POD_IP", "status.podIP"))
	for _, kv := range agent.Environ(provision.Image{UID: agentUID}) {
		name, value, _ := strings.Cut(kv, "=")
		add(envVar{Name: name, Value: &value})
	}
	for _, v := range agent.Variables {
		if v.IsSecret() {
			add(envVar{Name: v.Name, ValueFrom: &envSource{Secret: &secretRef{Name: AgentSecret, Key: v.Name}}})
			continue
		}
		text := literal(v.Literal)
		add(envVar{Name: v.Name, Value: &text})
	}
	return out
}

// maxConfigMap bounds the data of a ConfigMap, in bytes (Kubernetes' MaxSecretSize).
const maxConfigMap = 1 << 20

// files returns the ConfigMap with what the agent finds: its prompt, its skills, and what
// the settings in its home are computed from.
func (e *export) files() (object, error) {
	agent := e.plan.Provisions()
	o := object{APIVersion: "v1", Kind: "ConfigMap", Metadata: e.meta(filesName, agentName), Data: map[string]string{}}
	size := 0
	add := func(key string, data []byte) {
		size += len(key) + len(data)
		if utf8.Valid(data) {
			o.Data[key] = string(data)
			return
		}
		if o.BinaryData == nil {
			o.BinaryData = map[string]string{}
		}
		o.BinaryData[key] = base64.StdEncoding.EncodeToString(data)
	}
	d := describe(e.plan.Kind, agent)
	for i, f := range agent.Skills {
		s := skill{Path: f.Path, Mode: uint32(f.Mode.Perm()), Dir: f.Mode.IsDir()}
		if !s.Dir {
			s.Key = fmt.Sprintf("skill-%03d", i)
			add(s.Key, f.Data)
		}
		d.Skills = append(d.Skills, s)
	}
	if agent.Prompt != "" {
		add(promptKey, []byte(agent.Prompt))
	}
	if e.opt.Trust != nil {
		add(caKey, e.opt.Trust.CA)
	}
	text, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return o, err
	}
	add(agentKey, append(text, '\n'))
	if size > maxConfigMap {
		return o, &hint.Error{
			Err:  fmt.Errorf("prompt and skills have %d KiB: a ConfigMap holds 1024 KiB", (size+1023)>>10),
			Hint: "put large skills into the image",
		}
	}
	return o, nil
}

// policies returns the NetworkPolicies. They bind IPv4 only: nothing is opened for IPv6.
func (e *export) policies() ([]object, error) {
	policy, err := e.plan.Entries().Policy()
	if err != nil {
		return nil, err
	}
	port := []policyPort{{Protocol: "TCP", Port: segment.ProxyPort}}
	agents, proxies := e.podsOf(agentName), e.podsOf(proxyName)
	// Pipelock knows no ports.
	var ports []policyPort
	if e.plan.Proxy.Kind == manifest.ProxyPipelock {
		for _, r := range policy.PortRanges() {
			p := policyPort{Protocol: "TCP", Port: int(r.First)}
			if r.Last > r.First {
				p.EndPort = int(r.Last)
			}
			ports = append(ports, p)
		}
	}
	world := &ipBlock{CIDR: "0.0.0.0/0"}
	for _, p := range netns.Special() {
		world.Except = append(world.Except, p.String())
	}
	world.Except = append(world.Except, e.opt.Except...)
	private := policy.Private
	if len(policy.PrivateNames) > 0 {
		private = append(private, egress.PrivateNets()...)
	}
	out := []egressTo{{
		To: []peer{{
			Namespaces: &selector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "kube-system"}},
			Pods:       &selector{MatchLabels: map[string]string{"k8s-app": "kube-dns"}},
		}},
		Ports: []policyPort{{Protocol: "UDP", Port: 53}, {Protocol: "TCP", Port: 53}},
	}, {To: []peer{{Block: world}}, Ports: ports}}
	for _, p := range private {
		if p.Addr().Is4() {
			out = append(out, egressTo{To: []peer{{Block: &ipBlock{CIDR: p.String()}}}, Ports: ports})
		}
	}
	both := []string{"Ingress", "Egress"}
	return []object{
		{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Metadata: e.meta(agentName, agentName), Spec: networkPolicySpec{
			Pods: agents, Types: both, Egress: []egressTo{{To: []peer{{Pods: &proxies}}, Ports: port}},
		}},
		{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy", Metadata: e.meta(proxyName, proxyName), Spec: networkPolicySpec{
			Pods: proxies, Types: both, Ingress: []ingress{{From: []peer{{Pods: &agents}}, Ports: port}}, Egress: out,
		}},
	}, nil
}

func checkCIDR(text string) error {
	p, err := netip.ParsePrefix(text)
	if err == nil && p.Addr().Is4() && p.Masked() == p {
		return nil
	}
	return &hint.Error{
		Err:  fmt.Errorf("invalid --except %.100q: want an IPv4 network", cmp.Or(text, "")),
		Hint: "write it as 203.0.113.0/24",
	}
}
