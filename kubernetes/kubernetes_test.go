package kubernetes

import (
	"bytes"
	"context"
	"flag"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	k8syaml "sigs.k8s.io/yaml"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
)

var update = flag.Bool("update", false, "write the golden files")

// cluster is the host of an export: nothing is known of it.
type cluster struct{}

func (cluster) Prepared(context.Context, *plan.Plan) (string, error) { return "", nil }

func (cluster) Taken(context.Context) (map[string]bool, error) { return nil, nil }
func (cluster) Image(context.Context, string) (plan.ImageInfo, error) {
	return plan.ImageInfo{}, plan.ErrImageMissing
}
func (cluster) Runtime(context.Context, string) error              { return nil }
func (cluster) Network(context.Context) (plan.Network, error)      { return plan.Network{}, nil }
func (cluster) Workspace(context.Context, int64) ([]string, error) { return nil, nil }

// environment of the caller. No value of it may get into an export.
var environment = map[string]string{"GITHUB_TOKEN": "hunter2", "ANTHROPIC_API_KEY": "hunter3", "UNUSED": "hunter4"}

var values = regexp.MustCompile(`(?i)hunter|aHVudGVy`)

// prepare plans the agent impl of a manifest, as `bottle export kubernetes` does.
func prepare(t *testing.T, text string) (*plan.Plan, error) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string]string{
		"bottle.yaml":                              text,
		"home/.claude/skills/review/SKILL.md":      "Review it.\n",
		"home/.claude/skills/review/bin/check.sh":  "#!/bin/sh\n",
		"home/.claude/skills/review/data/logo.png": "\x89PNG\xff",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "home/.claude/skills/review/bin/check.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := plan.Spec{Agent: "impl", ManifestPath: filepath.Join(dir, "bottle.yaml"), NamesOnly: true, Caller: caller.Caller{
		Getenv:  func(name string) (string, bool) { v, ok := environment[name]; return v, ok },
		WorkDir: dir, Home: filepath.Join(dir, "home"), UID: os.Getuid(), GID: os.Getgid(),
	}}
	m, err := spec.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	spec.Loaded = m
	agent, bottle, err := m.Lookup("impl")
	if err != nil {
		t.Fatal(err)
	}
	if err := CheckAgent(agent, bottle); err != nil {
		return nil, err
	}
	p, err := plan.Prepare(t.Context(), spec, cluster{})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// exported prepares and exports a manifest. Paths of this run become /test.
func exported(t *testing.T, text string, opt Options) string {
	t.Helper()
	p, err := prepare(t, text)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Export(p, opt)
	if err != nil {
		t.Fatal(err)
	}
	again, err := Export(p, opt)
	if err != nil || !bytes.Equal(out, again) {
		t.Errorf("a second export differs, %v", err)
	}
	if found := values.Find(out); found != nil {
		t.Errorf("contains the value %s", found)
	}
	return strings.ReplaceAll(string(out), filepath.Dir(p.Manifest), "/test")
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var cases = []struct {
	name string // of the manifest
	opt  Options
}{
	{"claude", Options{Prefix: "registry.example/team/", Version: "1.2.3+meta"}},
	{"pipelock", Options{Image: "registry.example/bottle@sha256:" + strings.Repeat("0", 64), Namespace: "team-a", NoWalls: true, Except: []string{"203.0.113.0/24"}}},
	{"minimal", Options{Prefix: "localhost:5000", Version: "1.2.3"}},
	{"inject", Options{Prefix: "registry.example/team", Version: "1.2.3", Repo: "https://git.example/app.git", Trust: &provision.Trust{CA: []byte("the proxy's certificate\n"), Roots: []byte("the host's authorities\n")}}},
	{"repo", Options{Prefix: "registry.example/team", Version: "1.2.3", Namespace: "bottle-impl-2", Repo: "https://git.example:8443/team/app.git"}},
}

func TestExport(t *testing.T) {
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			out := exported(t, read(t, tc.name+".yaml"), tc.opt)
			golden := filepath.Join("testdata", tc.name+".golden.yaml")
			if *update {
				if err := os.WriteFile(golden, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want := read(t, tc.name+".golden.yaml"); out != want {
				t.Errorf("got\n%s\nwant\n%s\n(-update writes it)", out, want)
			}
		})
	}
}

// decoded are the objects of an export in the API's own types.
type decoded struct {
	order      []string // kinds
	namespace  corev1.Namespace
	pod        corev1.Pod
	deployment appsv1.Deployment
	service    corev1.Service
	maps       []corev1.ConfigMap
	policies   []networkingv1.NetworkPolicy
}

// decode decodes an export strictly: an unknown or duplicate key is an error, as in
// `kubectl apply --validate=strict`.
func decode(t *testing.T, text string) decoded {
	t.Helper()
	var d decoded
	for _, doc := range strings.Split(text, "\n---\n")[1:] {
		doc += "\n"
		var head struct{ Kind string }
		if err := k8syaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatal(err)
		}
		d.order = append(d.order, head.Kind)
		var into any
		switch head.Kind {
		case "Namespace":
			into = &d.namespace
		case "ServiceAccount":
			into = &corev1.ServiceAccount{}
		case "ConfigMap":
			d.maps = append(d.maps, corev1.ConfigMap{})
			into = &d.maps[len(d.maps)-1]
		case "NetworkPolicy":
			d.policies = append(d.policies, networkingv1.NetworkPolicy{})
			into = &d.policies[len(d.policies)-1]
		case "Service":
			into = &d.service
		case "Deployment":
			into = &d.deployment
		case "Pod":
			into = &d.pod
		default:
			t.Fatalf("unexpected kind %q", head.Kind)
		}
		if err := k8syaml.UnmarshalStrict([]byte(doc), into); err != nil {
			t.Errorf("%s: %v", head.Kind, err)
		}
	}
	return d
}

// TestTypes: the output has only keys and types of the API, and the order in which they have
// to be created.
func TestTypes(t *testing.T) {
	for _, tc := range cases {
		d := decode(t, exported(t, read(t, tc.name+".yaml"), tc.opt))
		want := "Namespace ServiceAccount NetworkPolicy NetworkPolicy ConfigMap ConfigMap Service Deployment Pod"
		if tc.opt.Trust != nil {
			want = strings.Replace(want, "ConfigMap", "ConfigMap ConfigMap", 1)
		}
		if got := strings.Join(d.order, " "); got != want {
			t.Errorf("%s: kinds %s, want %s", tc.name, got, want)
		}
		ns := d.namespace.Name
		for _, got := range []string{d.pod.Namespace, d.deployment.Namespace, d.service.Namespace, d.maps[0].Namespace, d.policies[1].Namespace} {
			if got != ns {
				t.Errorf("%s: an object is in %q, want %q", tc.name, got, ns)
			}
		}
		for key, value := range d.service.Spec.Selector {
			if d.deployment.Spec.Template.Labels[key] != value || d.policies[1].Spec.PodSelector.MatchLabels[key] != value ||
				d.policies[0].Spec.Egress[0].To[0].PodSelector.MatchLabels[key] != value {
				t.Errorf("%s: the selector %s=%s does not match the proxy's pods", tc.name, key, value)
			}
		}
		for key, value := range d.policies[0].Spec.PodSelector.MatchLabels {
			if d.pod.Labels[key] != value {
				t.Errorf("%s: the agent's policy does not select its pod", tc.name)
			}
		}
	}
}

// TestSandbox: the Sandbox has the pod's labels and spec, and is all that differs.
func TestSandbox(t *testing.T) {
	opt := cases[0].opt
	pod := exported(t, read(t, "claude.yaml"), opt)
	opt.Sandbox = true
	out := exported(t, read(t, "claude.yaml"), opt)
	i := strings.LastIndex(out, "\n---\n")
	if rest := strings.LastIndex(pod, "\n---\n"); out[:i] != pod[:rest] {
		t.Error("the other objects differ")
	}
	var got struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name      string            `json:"name"`
			Namespace string            `json:"namespace"`
			Labels    map[string]string `json:"labels"`
		} `json:"metadata"`
		Spec struct {
			PodTemplate struct {
				Metadata struct {
					Labels map[string]string `json:"labels"`
				} `json:"metadata"`
				Spec corev1.PodSpec `json:"spec"`
			} `json:"podTemplate"`
		} `json:"spec"`
	}
	if err := k8syaml.UnmarshalStrict([]byte(out[i+5:]), &got); err != nil {
		t.Fatal(err)
	}
	want := decode(t, pod).pod
	if got.APIVersion != "agents.x-k8s.io/v1beta1" || got.Kind != "Sandbox" || got.Metadata.Name != "agent" || got.Metadata.Namespace != want.Namespace {
		t.Errorf("%s %s %s", got.APIVersion, got.Kind, got.Metadata.Name)
	}
	if !reflect.DeepEqual(got.Spec.PodTemplate.Spec, want.Spec) || !maps.Equal(got.Spec.PodTemplate.Metadata.Labels, want.Labels) {
		t.Errorf("the pod differs: %+v", got.Spec.PodTemplate)
	}
}

// TestPodSecurity evaluates the pods by Kubernetes' own rules: everything meets restricted,
// except for the one capability of the walls.
func TestPodSecurity(t *testing.T) {
	checks, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(meta *corev1.Pod, level api.Level) string {
		result := policy.AggregateCheckResults(checks.EvaluatePod(api.LevelVersion{Level: level, Version: api.LatestVersion()}, &meta.ObjectMeta, &meta.Spec))
		return result.ForbiddenDetail()
	}
	for _, tc := range cases {
		d := decode(t, exported(t, read(t, tc.name+".yaml"), tc.opt))
		proxy := &corev1.Pod{ObjectMeta: d.deployment.Spec.Template.ObjectMeta, Spec: d.deployment.Spec.Template.Spec}
		if why := refused(proxy, api.LevelRestricted); why != "" {
			t.Errorf("%s: the proxy is refused: %s", tc.name, why)
		}
		level := api.Level(d.namespace.Labels["pod-security.kubernetes.io/enforce"])
		if why := refused(&d.pod, level); why != "" {
			t.Errorf("%s: the agent is refused at %s: %s", tc.name, level, why)
		}
		if tc.opt.NoWalls != (level == api.LevelRestricted) {
			t.Errorf("%s: level %s", tc.name, level)
		}
		if tc.opt.NoWalls {
			continue
		}
		if why := refused(&d.pod, api.LevelRestricted); !strings.Contains(why, "NET_ADMIN") || !strings.Contains(why, `"walls"`) {
			t.Errorf("%s: control: the walls are not refused at restricted: %s", tc.name, why)
		}
		d.pod.Spec.InitContainers = slices.DeleteFunc(d.pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == "walls" })
		if why := refused(&d.pod, api.LevelRestricted); why != "" {
			t.Errorf("%s: the agent without walls is refused: %s", tc.name, why)
		}
	}
}

// TestSecretCommand runs the commands of the comment in bash, where kubectl is a function
// that shows what it would store.
func TestSecretCommand(t *testing.T) {
	dir := t.TempDir()
	manifest := `version: 1
bottles:
  dev:
    env: {A: {from: GITHUB_TOKEN}, B: {prompt: "It's $HOME?"}, C: {file: "keys/my file"}, D: {command: [printf, "%s|%s", "a b", "it's $(id)"]}, E: text}
    proxy: {kind: builtin}
agents:
  impl: {bottle: dev, kind: codex}
`
	if err := os.Mkdir(filepath.Join(dir, "keys"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "keys/my file"), []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := strings.ReplaceAll(exported(t, manifest, Options{Prefix: "r.example"}), "/test/", dir+"/")
	var script strings.Builder
	script.WriteString("kubectl() { echo \"$1 $2 $3\"; for a; do case $a in --from-file=*) k=${a#*=}; echo \"${k%%=*}: $(cat \"${k#*=}\")\";; esac; done; }\n")
	commands := false
	for line := range strings.Lines(out) {
		text, ok := strings.CutPrefix(line, "#   ")
		commands = commands && ok || strings.HasPrefix(line, "# Create it")
		if ok && commands {
			script.WriteString(text)
		}
	}
	cmd := exec.Command("bash", "-eu", "-c", script.String())
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "GITHUB_TOKEN=hunter 2", "HOME=/nowhere"}
	cmd.Stdin = strings.NewReader("an answer\n")
	got, err := cmd.CombinedOutput()
	want := "create namespace bottle-impl\ncreate secret generic\nA: hunter 2\nB: an answer\nC: from a file\nD: a b|it's $(id)\napply -f FILE\n"
	if err != nil || string(got) != want {
		t.Errorf("%v\n%s\nprints\n%s\nwant\n%s", err, &script, got, want)
	}
}

// A name cannot end the comment: whoever makes a plan may not have read it from a manifest.
func TestHostileComment(t *testing.T) {
	p, err := prepare(t, read(t, "minimal.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	p.Bottle = "dev\n---\nkind: Job\u2028kind: Job"
	p.Prompt = "a\n---\nkind: Job\n" // indented, so not the start of a document
	out, err := Export(p, Options{Prefix: "r.example"})
	if err != nil {
		t.Fatal(err)
	}
	if d := decode(t, string(out)); len(d.order) != 9 || d.maps[1].Data["prompt"] != p.Prompt {
		t.Errorf("objects %v, prompt %q", d.order, d.maps[1].Data["prompt"])
	}
}

func TestErrors(t *testing.T) {
	const good = "version: 1\nbottles:\n  dev: {proxy: {kind: builtin}%s}\nagents:\n  impl: {bottle: dev%s}\n"
	for _, tc := range []struct {
		bottle, agent string
		opt           Options
		want, hint    string
	}{
		{", ssh: [{Host: work, IdentityFile: id}]", "", Options{}, "ssh entries", "https"},
		{", env: {A: {inject: [a.example]}}, egress: {allow: [a.example]}", "", Options{}, "cannot inject A", "inject: false"},
		{", egress: {allow: [{host: a.example, methods: [GET]}]}", "", Options{}, "cannot apply the rules for a.example", "without rules"},
		{", image: debian", "", Options{}, "unknown command", "set command"},
		{"", ", kind: codex", Options{Prefix: "-", Version: "1"}, "unknown registry", "--image-prefix"},
		{"", ", kind: codex", Options{}, "unknown registry", "--image-prefix"},
		{"", ", kind: codex", Options{Prefix: "UP PER"}, "image", "--image-prefix"},
		{"", ", kind: codex", Options{Namespace: "No"}, `invalid namespace "No"`, "--namespace"},
		{"", ", kind: codex", Options{Except: []string{"10.0.0.1/8"}}, "invalid --except", "203.0.113.0/24"},
		{"", ", kind: codex", Options{Except: []string{"::/0"}}, "invalid --except", "203.0.113.0/24"},
		{"", ", kind: codex", Options{Repo: "https://git.example/app.git"}, "cannot clone from git.example: agent \"impl\" may not reach it", "add git.example to egress.allow"},
		{", egress: {allow: [git.example]}", ", kind: codex", Options{Repo: "https://git.example:8443/app.git"}, "cannot clone from git.example:8443", "add git.example:8443"},
		{", egress: {allow: [git.example], deny: [git.example]}", ", kind: codex", Options{Repo: "https://git.example/app.git"}, "may not reach it", "egress.allow"},
		{", egress: {allow: [git.example]}", ", kind: codex", Options{Repo: "https://me:s3cret@git.example/app.git"}, "with a login in the URL", "variables"},
		{"", ", kind: codex", Options{Repo: "ssh://me:s3cret@git.example/app.git"}, "only https", "--repo"},
		{"", ", kind: codex", Options{Repo: "git@git.example:app.git"}, "URL of a repository", "--repo"},
		{"", ", kind: codex", Options{Repo: "https:///app.git"}, "only https", "--repo"},
		{", egress: {allow: [git.example]}", ", kind: codex", Options{Repo: "https://git.example/"}, "names no repository", "--repo"},
		{", egress: {allow: [git.example]}", ", kind: codex", Options{Repo: "https://git.example/app.git?x=1"}, "no parameters", "--repo"},
	} {
		if tc.opt.Prefix == "" && tc.want != "unknown registry" {
			tc.opt.Prefix = "r.example"
		}
		if tc.opt.Prefix == "-" {
			tc.opt.Prefix = ""
		}
		text := strings.Replace(strings.Replace(good, "%s", tc.bottle, 1), "%s", tc.agent, 1)
		p, err := prepare(t, text)
		if err == nil {
			_, err = Export(p, tc.opt)
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(hint.Of(hint.Split(err)[0]), tc.hint) || strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%.80s: %v (%s), want %q and the hint %q", tc.bottle+tc.agent, err, hint.Of(err), tc.want, tc.hint)
		}
	}
	p, err := prepare(t, strings.Replace(strings.Replace(good, "%s", "", 1), "%s", ", kind: codex", 1))
	if err != nil {
		t.Fatal(err)
	}
	p.Prompt = strings.Repeat("x", 1<<20)
	if _, err := Export(p, Options{Prefix: "r.example"}); err == nil || !strings.Contains(err.Error(), "ConfigMap") || !strings.Contains(hint.Of(err), "image") {
		t.Errorf("a large prompt: %v", err)
	}
	p.Learn, p.Workspace = true, &plan.Workspace{}
	if _, err := Export(p, Options{Prefix: "r.example"}); len(hint.Split(err)) != 2 {
		t.Errorf("learning and a workspace: %v", err)
	}
}

// The proxy's configuration is what the built-in proxy reads.
func TestProxyKinds(t *testing.T) {
	d := decode(t, exported(t, read(t, "claude.yaml"), cases[0].opt))
	if text := d.maps[0].Data["proxy.json"]; !strings.Contains(text, `"github.com"`) || !strings.Contains(text, `"api.anthropic.com"`) {
		t.Errorf("configuration %s", text)
	}
	d = decode(t, exported(t, read(t, "pipelock.yaml"), cases[1].opt))
	ports := d.policies[1].Spec.Egress[1].Ports
	if len(ports) != 3 || ports[0].Port.IntValue() != 80 || ports[1].Port.IntValue() != 443 || ports[1].EndPort != nil ||
		ports[2].Port.IntValue() != 8443 || *ports[2].EndPort != 8450 {
		t.Errorf("ports of pipelock: %+v", ports)
	}
	if got := d.deployment.Spec.Template.Spec.Containers[0]; got.Command != nil || got.Args[0] != "run" {
		t.Errorf("pipelock's container: %+v", got)
	}
}
