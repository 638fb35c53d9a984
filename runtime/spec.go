package runtime

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// pathEnv is what an image without a PATH gets, as docker gives it.
const pathEnv = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// agentCaps are docker's defaults without NET_RAW, MKNOD, AUDIT_WRITE, SETFCAP
// and NET_BIND_SERVICE, for an agent that is root in its sandbox. An agent that
// is not has none.
var agentCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_SYS_CHROOT",
}

// maskedPaths and readonlyPaths are what docker and containerd hide of /proc
// and /sys.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// baseSpec holds what the agent's and the proxy's specs share.
func baseSpec(cgroup, netns, hostname string) *specs.Spec {
	return &specs.Spec{
		Version:  "1.1.0",
		Hostname: hostname,
		Root:     &specs.Root{Path: "rootfs"},
		Mounts:   standardMounts(),
		Process:  &specs.Process{NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: netns},
			},
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
		},
	}
}

func standardMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// bind mounts a host path, read-only unless rw.
func bind(source, target string, rw bool) specs.Mount {
	opts := []string{"rbind", "rprivate", "nosuid", "nodev", "ro"}
	if rw {
		opts[len(opts)-1] = "rw"
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: opts}
}

// tmpfs is a small folder in memory that is the user's own. Under gVisor it is
// the sandbox's memory, while its root file system writes to the host's disk.
func tmpfs(target string, u User) specs.Mount {
	return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: []string{
		"nosuid", "nodev", "noexec", "mode=700", fmt.Sprintf("uid=%d", u.UID), fmt.Sprintf("gid=%d", u.GID), "size=32m",
	}}
}

func agentSpec(cfg AgentConfig, r *RootFS, cgroup string) *specs.Spec {
	s := baseSpec(cgroup, cfg.NetNS, cfg.Hostname)
	for _, m := range cfg.Mounts {
		s.Mounts = append(s.Mounts, bind(m.Source, m.Target, m.Writable))
	}
	for _, target := range cfg.Tmpfs {
		s.Mounts = append(s.Mounts, tmpfs(target, r.User))
	}
	s.Process.Args = cfg.Init
	// A runtime enters a folder before the walls are up, and a link of the image's
	// or the agent's may lead to a descriptor that it has of the host's
	// (CVE-2024-21626, runc before 1.1.12): who wants to be elsewhere goes there
	// inside.
	s.Process.Cwd = "/"
	s.Process.Env = environ(r.conf.Env, cfg.Env, r.User.Home)
	s.Process.User = specs.User{UID: r.User.UID, GID: r.User.GID, AdditionalGids: r.User.Additional}
	s.Process.Capabilities = capabilities(r.User.UID, cfg.AddCaps)
	limit(s, cfg.Memory, cfg.CPUs, pidsBackstop(cfg))
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}} // a core file would hold the environment
	if cfg.Runtime == RuntimeRunc {
		// gVisor filters its own system calls; under runc the profile is all
		// that stands between the agent and the host's kernel.
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
		score := sandboxScore
		s.Process.OOMScoreAdj = &score
		hideCgroups(s)
	} else {
		// Not under runc, where the host's kernel counts all processes of that
		// user id, other bottles' and the host's own among them.
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Hard: uint64(cfg.Pids), Soft: uint64(cfg.Pids)})
		s.Annotations = map[string]string{
			// Without it runsc's shim hands the container no stdio, and create
			// never returns (gVisor pkg/shim/v1/utils).
			"io.kubernetes.cri.container-type": "sandbox",
		}
	}
	return s
}

// pidsBackstop is the cgroup's limit on tasks. Under gVisor it counts the
// sandbox's own threads, and reaching it ends the whole sandbox, so that
// RLIMIT_NPROC is the agent's limit and this one only keeps the host safe. Under
// runc it is the agent's limit.
func pidsBackstop(cfg AgentConfig) int64 {
	if cfg.Runtime == RuntimeRunc {
		return cfg.Pids
	}
	return 4*cfg.Pids + 4096
}

func capabilities(uid uint32, add []string) *specs.LinuxCapabilities {
	var caps []string
	if uid == 0 {
		caps = append(caps, agentCaps...)
	}
	caps = append(caps, add...)
	return &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
}

func limit(s *specs.Spec, memory int64, cpus float64, pids int64) {
	res := s.Linux.Resources
	res.Memory = &specs.LinuxMemory{Limit: &memory}
	if SwapCounted() {
		res.Memory.Swap = &memory // of memory and swap together: none is left for swap
	}
	res.Pids = &specs.LinuxPids{Limit: &pids}
	if cpus > 0 {
		period := uint64(100_000) // microseconds, the kernel's default
		quota := int64(cpus * float64(period))
		res.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
}

// SwapCounted tells whether the kernel counts the swap that a cgroup uses, so that
// it can be forbidden. One that does not would refuse a container that asks for it.
func SwapCounted() bool {
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/memory.swap.max",                  // version 2; the root has none
		"/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", // version 1
	} {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return true
		}
	}
	return false
}

// environ lays one environment over another; later values win. HOME is the
// user's unless one of them says otherwise.
func environ(image, over []string, home string) []string {
	order := []string{}
	values := map[string]string{}
	set := func(list []string) {
		for _, kv := range list {
			k, _, _ := strings.Cut(kv, "=")
			if _, ok := values[k]; !ok {
				order = append(order, k)
			}
			values[k] = kv
		}
	}
	set([]string{pathEnv, "HOME=" + home})
	set(image)
	set(over)
	out := make([]string, 0, len(order))
	for _, k := range order {
		out = append(out, values[k])
	}
	return out
}

func proxySpec(cfg ProxyConfig, cgroup string) *specs.Spec {
	s := baseSpec(cgroup, cfg.NetNS, cfg.Hostname)
	s.Root.Readonly = true
	s.Process.Args, s.Process.Env = cfg.Args, append([]string{pathEnv}, cfg.Env...)
	if cfg.RootFS == nil {
		s.Root.Path = filepath.Join(cfg.Dir, "rootfs")
	} else {
		conf := cfg.RootFS.conf
		s.Process.Args = slices.Concat(conf.Entrypoint, cfg.Args)
		s.Process.Env = environ(conf.Env, cfg.Env, "/")
	}
	for _, m := range cfg.Mounts {
		s.Mounts = append(s.Mounts, bind(m.Source, m.Target, m.Writable))
	}
	s.Process.Cwd = "/"
	s.Process.User = specs.User{UID: proxyUID, GID: proxyUID}
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}
	limit(s, proxyMemory, cfg.CPUs, proxyPids)
	score := proxyScore
	s.Process.OOMScoreAdj = &score
	hideCgroups(s)
	s.Linux.Seccomp = seccomp.DefaultProfile(s)
	return s
}

// hideCgroups keeps the host's cgroup path out of /proc/self/cgroup. gVisor has
// cgroups of its own.
func hideCgroups(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
}

// Out-of-memory scores. Without one a process would take over the shim's, which
// is containerd's own -999 in most set-ups, and on a host short of memory the
// kernel would kill anything else first. An agent goes before its proxy.
const (
	sandboxScore = 500
	proxyScore   = 100
)

// The proxy's own limits: it holds connections, not data.
const (
	proxyUID          = 65534
	proxyMemory int64 = 256 << 20
	proxyPids   int64 = 512
)

// cgroupPath is one component at the root of the hierarchy, so that nothing of
// it is left when the task is gone. It may not begin with "pod": runsc's shim
// takes such a path for Kubernetes'.
func (c *Client) cgroupPath(id string) string {
	return fmt.Sprintf("/%s-%s", c.cfg.Namespace, id)
}
