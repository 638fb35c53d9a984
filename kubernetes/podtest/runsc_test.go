package podtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/bot-bottle/bottle/netns"
)

// pod is a sandbox of gVisor in a network namespace as CNI's ptp plugin makes it.
type pod struct {
	t        *testing.T
	spec     corev1.Pod
	dir, ns  string
	images   map[string]string // root file systems: of bottle's image, and of the agent's
	volumes  map[string]string // directories
	services map[string]string // variables of Services
	started  []string
}

// setUpNode gives this process's network namespace the addresses of the node, and of all
// that is behind it.
func setUpNode(t *testing.T) {
	t.Helper()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	added := map[string]bool{}
	for _, v := range append([]string{proxyIP + ":0"}, victims...) {
		host, _, err := net.SplitHostPort(v)
		if err != nil {
			t.Fatal(err)
		}
		if added[host] {
			continue
		}
		added[host] = true
		bits := "/32"
		if strings.Contains(host, ":") {
			bits = "/128"
		}
		addr := addAddress(t, lo, host+bits)
		t.Cleanup(func() { // for another run of the test
			if err := netlink.AddrDel(lo, addr); err != nil {
				t.Error(err)
			}
		})
	}
}

func addAddress(t *testing.T, l netlink.Link, text string) *netlink.Addr {
	t.Helper()
	addr, err := netlink.ParseAddr(text)
	if err != nil {
		t.Fatal(err)
	}
	addr.Flags = unix.IFA_F_NODAD
	if err := netlink.AddrAdd(l, addr); err != nil {
		t.Fatalf("add %s: %v", text, err)
	}
	return addr
}

// newPod creates the network of a pod and starts its sandbox.
func newPod(t *testing.T, program string, spec corev1.Pod, files string) *pod {
	t.Helper()
	p := &pod{t: t, spec: spec, dir: t.TempDir(), images: map[string]string{}, volumes: map[string]string{"files": files},
		services: map[string]string{
			"PROXY_SERVICE_HOST": proxyIP, "PROXY_SERVICE_PORT": "8888", "KUBERNETES_SERVICE_HOST": apiIP, "KUBERNETES_SERVICE_PORT": "443",
		}}
	p.network()
	probe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.images["bottle"] = p.image("bottle", map[string]string{"bottle": program, "probe": probe})
	p.images["agent"] = p.image("agent", map[string]string{"probe": probe})
	for _, v := range spec.Spec.Volumes {
		if v.EmptyDir != nil {
			p.volumes[v.Name] = p.mkdir("volume-" + v.Name)
			if err := os.Chmod(p.volumes[v.Name], 0o777); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Cleanup(p.remove)
	p.start("pause", p.images["bottle"], specs.Process{Args: []string{"/probe", "sleep"}, Cwd: "/"}, nil)
	return p
}

func (p *pod) mkdir(name string) string {
	p.t.Helper()
	dir := filepath.Join(p.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		p.t.Fatal(err)
	}
	return dir
}

// image makes a root file system with mount points, a home and programs.
func (p *pod) image(name string, programs map[string]string) string {
	p.t.Helper()
	root := p.mkdir("image-" + name)
	for _, d := range []string{"proc", "tmp", "config", ".bottle", "workspace", "home/agent"} {
		p.mkdir("image-" + name + "/" + d)
	}
	if err := os.Chown(filepath.Join(root, "home/agent"), 1000, 1000); err != nil {
		p.t.Fatal(err)
	}
	for to, from := range programs {
		data, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, to), data, 0o755)
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}
	return root
}

// network creates the pod's namespace, which a process of its own keeps.
func (p *pod) network() {
	t := p.t
	t.Helper()
	hold := exec.Command("/proc/self/exe")
	hold.Env = append(os.Environ(), stageVar+"=hold")
	stdin, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	hold.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = hold.Wait() // its exit code says nothing
	})
	p.ns = fmt.Sprintf("/proc/%d/ns/net", hold.Process.Pid)
	ns, err := os.Open(p.ns)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ns.Close() }() // read only
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(veth); err != nil {
			t.Error(err)
		}
	})
	if err := netlink.LinkSetUp(veth); err != nil {
		t.Fatal(err)
	}
	back := net.IPNet{IP: net.ParseIP(podIP), Mask: net.CIDRMask(32, 32)}
	back6 := net.IPNet{IP: net.ParseIP("fd00:244::7"), Mask: net.CIDRMask(128, 128)}
	for _, dst := range []*net.IPNet{&back, &back6} {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: veth.Index, Dst: dst}); err != nil {
			t.Fatal(err)
		}
	}
	// Neighbors of IPv6 answer for addresses of the link only.
	addAddress(t, veth, "fe80::244/64")
	addAddress(t, veth, "fd00:244::1/128")
	if err := netns.Do(p.ns, configureEth0); err != nil {
		t.Fatal(err)
	}
}

func configureEth0() error {
	for _, name := range []string{"lo", "eth0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
	}
	eth0, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	for _, text := range []string{podIP + "/24", "fd00:244::7/64"} {
		addr, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		addr.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(eth0, addr); err != nil {
			return err
		}
	}
	v6 := net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	for _, r := range []netlink.Route{
		{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(gatewayIP)},
		{LinkIndex: eth0.Attrs().Index, Dst: &v6, Gw: net.ParseIP("fe80::244")},
	} {
		if err := netlink.RouteAdd(&r); err != nil {
			return err
		}
	}
	return nil
}

// runsc runs gVisor's program with its state in the pod's directory.
func (p *pod) runsc(out io.Writer, args ...string) error {
	args = append([]string{"--root", filepath.Join(p.dir, "state"), "--ignore-cgroups", "--platform=systrap"}, args...)
	cmd := exec.Command("runsc", args...)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd.Run()
}

func (p *pod) remove() {
	for _, id := range slices.Backward(p.started) {
		var out bytes.Buffer
		if err := p.runsc(&out, "delete", "--force", id); err != nil {
			p.t.Errorf("delete %s: %v, %s", id, err, &out)
		}
	}
	_ = unix.Unmount(filepath.Join(p.dir, "state", "null-netns"), unix.MNT_DETACH) // of some versions
}

// start creates and starts a container, and returns its ID and the file of its output.
func (p *pod) start(name, root string, process specs.Process, mounts []specs.Mount) (id, log string) {
	p.t.Helper()
	// No ID begins with another one, which runsc would find ambiguous.
	id = fmt.Sprintf("c%02d-%s", len(p.started), name)
	kind, sandbox := "container", id
	if len(p.started) == 0 {
		kind = "sandbox"
	} else {
		sandbox = p.started[0]
	}
	spec := specs.Spec{
		Version: "1.0.2", Process: &process, Root: &specs.Root{Path: root, Readonly: true}, Hostname: "pod",
		Mounts: append([]specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
		}, mounts...),
		Annotations: map[string]string{"io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": sandbox},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{
			{Type: specs.NetworkNamespace, Path: p.ns}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
		}},
	}
	if root == p.images["agent"] {
		spec.Root.Readonly = false
	}
	bundle := p.mkdir("bundle-" + id)
	data, err := json.Marshal(spec)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	log = filepath.Join(bundle, "log")
	out, err := os.Create(log)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = out.Close() }() // the container has it
	if err := p.runsc(out, "create", "--bundle", bundle, id); err == nil {
		p.started = append(p.started, id)
		err = p.runsc(out, "start", id)
		if err == nil {
			return id, log
		}
	}
	text, _ := os.ReadFile(log)
	p.t.Fatalf("start %s: %s", id, text)
	return "", ""
}

var reference = regexp.MustCompile(`\$\$|\$\(([A-Za-z_][A-Za-z0-9_]*)\)`)

// expand expands variables as kubelet does: an unknown one stays, and $$ is one $.
func expand(text string, vars map[string]string) string {
	return reference.ReplaceAllStringFunc(text, func(found string) string {
		if found == "$$" {
			return "$"
		}
		if value, ok := vars[found[2:len(found)-1]]; ok {
			return value
		}
		return found
	})
}

// launch starts a container of the pod as kubelet does.
func (p *pod) launch(c corev1.Container) (id, log string) {
	p.t.Helper()
	vars := map[string]string{}
	for k, v := range p.services {
		vars[k] = v
	}
	env := []string{"PATH=/usr/bin:/bin", "HOME=/home/agent"}
	for k, v := range p.services {
		env = append(env, k+"="+v)
	}
	for _, v := range c.Env {
		value := expand(v.Value, vars)
		switch from := v.ValueFrom; {
		case from == nil:
		case from.SecretKeyRef != nil:
			value = "hunter2"
		case from.FieldRef.FieldPath == "status.podIP":
			value = podIP
		case from.FieldRef.FieldPath == "status.hostIP":
			value = nodeIP
		default:
			p.t.Fatalf("unexpected source of %s", v.Name)
		}
		vars[v.Name] = value
		env = append(env, v.Name+"="+value)
	}
	user := specs.User{UID: uint32(*p.spec.Spec.SecurityContext.RunAsUser), GID: uint32(*p.spec.Spec.SecurityContext.RunAsGroup)}
	if id := c.SecurityContext.RunAsUser; id != nil {
		user = specs.User{UID: uint32(*id), GID: uint32(*c.SecurityContext.RunAsGroup)}
	}
	var caps []string
	for _, added := range c.SecurityContext.Capabilities.Add {
		caps = append(caps, "CAP_"+string(added))
	}
	process := specs.Process{
		User: user, Env: env, Cwd: "/", NoNewPrivileges: !*c.SecurityContext.AllowPrivilegeEscalation,
		Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
	}
	for _, arg := range c.Command {
		process.Args = append(process.Args, expand(arg, vars))
	}
	root := p.images["bottle"]
	if c.Name == "agent" {
		root, process.Cwd = p.images["agent"], "/workspace"
	}
	mounts := make([]specs.Mount, 0, len(c.VolumeMounts))
	for _, m := range c.VolumeMounts {
		options := []string{"rbind", "rw"}
		if m.ReadOnly {
			options[1] = "ro"
		}
		mounts = append(mounts, specs.Mount{Destination: m.MountPath, Type: "bind", Source: p.volumes[m.Name], Options: options})
	}
	slices.SortFunc(mounts, func(a, b specs.Mount) int { return strings.Compare(a.Destination, b.Destination) })
	return p.start(c.Name, root, process, mounts)
}

// run runs a container to its end.
func (p *pod) run(c corev1.Container) (out string, code int) {
	p.t.Helper()
	id, log := p.launch(c)
	var result bytes.Buffer
	if err := p.runsc(&result, "wait", id); err != nil {
		p.t.Fatalf("wait for %s: %v, %s", id, err, &result)
	}
	var status struct{ ExitStatus int }
	if err := json.Unmarshal(result.Bytes(), &status); err != nil {
		p.t.Fatalf("wait for %s: %v, %s", id, err, &result)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		p.t.Fatal(err)
	}
	return string(text), status.ExitStatus
}

// runUntil runs a container that does not end, until it has printed a text.
func (p *pod) runUntil(c corev1.Container, want string) string {
	p.t.Helper()
	id, log := p.launch(c)
	deadline := time.Now().Add(time.Minute)
	for {
		text, err := os.ReadFile(log)
		if err != nil {
			p.t.Fatal(err)
		}
		if strings.Contains(string(text), want) {
			var state bytes.Buffer
			if err := p.runsc(&state, "state", id); err != nil || !strings.Contains(state.String(), `"running"`) {
				p.t.Errorf("%s has ended: %v, %s", id, err, &state)
			}
			return string(text)
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s has not printed %q: %s", id, want, text)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// agentReport runs the agent's container and returns what it has found.
func (p *pod) agentReport() (r report) {
	p.t.Helper()
	out, code := p.run(p.spec.Spec.Containers[0])
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
		p.t.Fatalf("agent: exit code %d, %v, %s", code, err, out)
	}
	return r
}
