package runtime

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bot-bottle/bottle/internal/hosttask"
)

// pathEnv is the PATH of an image that sets none, as in docker.
const pathEnv = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// agentCaps are docker's defaults without NET_RAW, MKNOD, AUDIT_WRITE, SETFCAP
// and NET_BIND_SERVICE, for an agent that is root in its sandbox. Other users have
// no capabilities.
var agentCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_SYS_CHROOT",
}

// maskedPaths and readonlyPaths are the defaults of docker and containerd, and
// /sys/fs/cgroup: under cgroup version 1 it is a tmpfs that runc leaves writable for
// root, without a size limit.
var (
	maskedPaths = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys/fs/cgroup"}
)

// baseSpec returns the common part of the agent's and the proxy's specs.
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

// standardMounts include the cgroup file system, in which language runtimes read their
// CPU and memory limits. gVisor emulates it; under runc the cgroup namespace limits it
// to the container's own cgroup.
func standardMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// bind returns a bind mount of a host path, read-only unless rw.
func bind(source, target string, rw bool) specs.Mount {
	opts := []string{"rbind", "rprivate", "nosuid", "nodev", "ro"}
	if rw {
		opts[len(opts)-1] = "rw"
	}
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: opts}
}

// userTmpfs returns a small tmpfs owned by the user. Under gVisor it is in the
// sandbox's memory, while the root file system is written to the host's disk.
func userTmpfs(target string, u User) specs.Mount {
	return specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: []string{
		"nosuid", "nodev", "noexec", "mode=700", fmt.Sprintf("uid=%d", u.UID), fmt.Sprintf("gid=%d", u.GID), "size=32m",
	}}
}

// tmpOnRootFS keeps /tmp on the root file system under gVisor, which by default
// mounts a tmpfs on an empty or missing /tmp: in the sandbox's memory, without a
// size, and a separate device. It does not if the spec has a mount for /tmp, and it
// ignores mounts of an unknown type (gVisor runsc/boot/vfs.go, mountTmp and
// getMountNameAndOptions).
var tmpOnRootFS = specs.Mount{Destination: "/tmp", Type: "rootfs", Source: "rootfs"}

// sharedHints returns the annotations by which gVisor recognizes mounts that something
// else changes (gVisor runsc/boot/mount_hints.go). With an exclusive mount all others
// need them, because runsc's configuration makes every mount exclusive (writeRunscConfig):
// the annotation for an exclusive mount would also put an overlay on it, and nothing that
// the agent writes would reach the host.
func sharedHints(mounts []Mount) map[string]string {
	hints := map[string]string{}
	if !hasExclusive(mounts) {
		return hints
	}
	for i, m := range mounts {
		if !m.Exclusive {
			prefix := fmt.Sprintf("dev.gvisor.spec.mount.m%d.", i)
			hints[prefix+"source"], hints[prefix+"type"], hints[prefix+"share"] = m.Source, "bind", "shared"
		}
	}
	return hints
}

func hasExclusive(mounts []Mount) bool {
	return slices.ContainsFunc(mounts, func(m Mount) bool { return m.Exclusive })
}

func agentSpec(cfg AgentConfig, r *RootFS, cgroup string) *specs.Spec {
	s := baseSpec(cgroup, cfg.NetNS, cfg.Hostname)
	for _, m := range cfg.Mounts {
		b := bind(m.Source, m.Target, m.Writable)
		if m.Exclusive {
			// gVisor would write back the access times that it has cached.
			b.Options = append(b.Options, "noatime")
		}
		s.Mounts = append(s.Mounts, b)
	}
	for _, target := range cfg.Tmpfs {
		s.Mounts = append(s.Mounts, userTmpfs(target, r.User))
	}
	s.Process.Args = cfg.Init
	// A runtime changes to the working directory before isolation is complete, and
	// a symbolic link may lead to a host descriptor of the runtime (CVE-2024-21626,
	// runc before 1.1.12). Sessions change the directory inside the sandbox instead.
	s.Process.Cwd = "/"
	s.Process.Env = mergeEnv(r.conf.Env, cfg.Env, r.User.Home)
	s.Process.User = processUser(cfg.Runtime, r.User)
	s.Process.Capabilities = capabilities(r.User.UID, cfg.AddCaps)
	setLimits(s, cfg.Memory, cfg.CPUs, cgroupPids(cfg))
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}} // a core file would contain the environment
	if cfg.Runtime == RuntimeRunc {
		// gVisor filters its own system calls. Under runc only this profile limits
		// the agent's access to the host's kernel.
		s.Linux.Seccomp = seccomp.DefaultProfile(s)
		score := sandboxScore
		s.Process.OOMScoreAdj = &score
		hideCgroups(s)
	} else {
		// Not under runc, where the host's kernel counts all processes of that user
		// ID, including those of other bottles and of the host.
		s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Hard: uint64(cfg.Pids), Soft: uint64(cfg.Pids)})
		s.Mounts = append(s.Mounts, tmpOnRootFS)
		s.Annotations = sharedHints(cfg.Mounts)
		// Without it runsc's shim gives the container no stdio, and create never returns
		// (gVisor pkg/shim/v1/utils).
		s.Annotations[annotationSandbox] = "sandbox"
		if cfg.Disk > 0 {
			s.Annotations[annotationDisk] = strconv.FormatInt(cfg.Disk, 10)
		}
	}
	return s
}

// privateGID is the primary group of an agent under runc, where the image's user is a
// user of the host, too. A host user with the same ID may inspect the agent's processes
// (environment, memory, files) only if the group is the same as well (ptrace(2),
// "Ptrace access mode checking"). The ID is in a range that is not used on any host
// (systemd docs/UIDS-GIDS.md).
const privateGID = 1879048192

// processUser returns the user of an agent's processes. Under runc they have the image's
// group as a supplementary group. An agent that is root needs no protection from host
// users.
func processUser(runtime string, u User) specs.User {
	out := specs.User{UID: u.UID, GID: u.GID, AdditionalGids: u.Additional}
	if runtime == RuntimeRunc && u.UID != 0 {
		out.GID, out.AdditionalGids = privateGID, append([]uint32{u.GID}, u.Additional...)
	}
	return out
}

// PrivateGroup returns the edit of an image's group file that names the primary group of
// an agent under runc. Without it, tools such as groups(1) complain.
func PrivateGroup() File {
	return File{Path: "/etc/group", Mode: 0o644, Root: true, Edit: func(old []byte) ([]byte, error) {
		if n := len(old); n > 0 && old[n-1] != '\n' {
			old = append(old, '\n')
		}
		return fmt.Appendf(old, "bottle:x:%d:\n", privateGID), nil
	}}
}

// cgroupPids returns the cgroup's limit on tasks. Under gVisor the cgroup counts the
// sandbox's own threads, and reaching the limit kills the sandbox. There
// RLIMIT_NPROC is the agent's limit, and this one only protects the host. Under runc
// it is the agent's limit.
func cgroupPids(cfg AgentConfig) int64 {
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

func setLimits(s *specs.Spec, memory int64, cpus float64, pids int64) {
	res := s.Linux.Resources
	res.Memory = &specs.LinuxMemory{Limit: &memory}
	if SwapAccounting() {
		res.Memory.Swap = &memory // memory plus swap, so no swap
	}
	res.Pids = &specs.LinuxPids{Limit: &pids}
	if cpus > 0 {
		period := uint64(100_000) // microseconds, the kernel's default
		quota := int64(cpus * float64(period))
		res.CPU = &specs.LinuxCPU{Period: &period, Quota: &quota}
	}
}

// SwapAccounting reports whether the kernel accounts for a cgroup's swap, so that it
// can be limited. Without it, a runtime rejects a swap limit.
func SwapAccounting() bool {
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

// mergeEnv merges two environments; override takes precedence. PATH and HOME have
// defaults.
func mergeEnv(image, override []string, home string) []string {
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
	set(override)
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
		s.Process.Env = mergeEnv(conf.Env, cfg.Env, "/")
	}
	for _, m := range cfg.Mounts {
		s.Mounts = append(s.Mounts, bind(m.Source, m.Target, m.Writable))
	}
	s.Process.Cwd = "/"
	s.Process.User = specs.User{UID: cfg.uid(), GID: cfg.uid()}
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}
	setLimits(s, cmp.Or(cfg.Memory, proxyMemory), cfg.CPUs, proxyPids)
	score := proxyScore
	s.Process.OOMScoreAdj = &score
	hideCgroups(s)
	s.Linux.Seccomp = seccomp.DefaultProfile(s)
	return s
}

// hideCgroups hides the host's cgroup path in /proc/self/cgroup. gVisor emulates
// its own cgroups.
func hideCgroups(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
}

// Out-of-memory scores. By default a process inherits the shim's, which in most
// setups is containerd's -999, and the kernel would kill anything else on the host
// first. An agent is killed before its proxy.
const (
	sandboxScore = 500
	proxyScore   = 100
)

// ProxyUID is the user and group of the proxy's process.
const ProxyUID = 65534

// The proxy's own limits.
const (
	proxyMemory int64 = 256 << 20
	proxyPids   int64 = 512
)

// annotationSandbox is set on runsc's containers only.
const annotationSandbox = "io.kubernetes.cri.container-type"

func isRunsc(s *specs.Spec) bool { return s.Annotations[annotationSandbox] != "" }

// runtimeOf returns the runtime of an agent's spec.
func runtimeOf(s *specs.Spec) string {
	if isRunsc(s) {
		return RuntimeRunsc
	}
	return RuntimeRunc
}

// cgroupPath returns the cgroup of a container: a single component at the root of the
// hierarchy, so that no parent cgroup is left behind.
func (c *Client) cgroupPath(id string) string { return hosttask.CgroupPath(c.cfg.Namespace, id) }
