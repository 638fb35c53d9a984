// Package doctor checks that a host can run bottles and suggests fixes.
package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
)

// Levels of a Finding.
const (
	LevelOK   = "ok"
	LevelWarn = "warn" // bottles run, but a part may not work or be less secure
	LevelFail = "fail" // bottles cannot run
)

// Finding is the result of one check.
type Finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"`
	Detail string `json:"detail"`
	// Fix says how to fix the problem; it is empty at LevelOK.
	Fix string `json:"fix,omitempty"`
}

// Run checks everything on the host that a bottle needs, and the proxy images of the
// manifest that spec names. It creates only a scratch directory, which it removes.
func Run(ctx context.Context, cfg bottle.Config, spec plan.Spec) []Finding {
	d := &checks{cfg: cfg}
	d.privilege()
	d.tmpfs()
	e := d.containerd(ctx)
	if e != nil {
		defer func() { _ = e.Close() }()
	}
	d.runtime(ctx, e, runtime.RuntimeRunsc)
	d.runtime(ctx, e, runtime.RuntimeRunc)
	d.platform(ctx)
	d.network(ctx)
	d.cgroups()
	d.disk()
	m, err := spec.Manifest()
	d.workspaces(ctx, e, m)
	d.resolvers()
	d.proxyImages(ctx, e, m, err)
	return d.found
}

type checks struct {
	cfg   bottle.Config
	found []Finding
}

func (d *checks) report(check, level, fix, format string, args ...any) {
	d.found = append(d.found, Finding{Check: check, Level: level, Detail: fmt.Sprintf(format, args...), Fix: fix})
}

// fail reports an error with its own hint, or with fix if it has none.
func (d *checks) fail(check string, err error, fix string) {
	if hint := hint.Of(err); hint != "" {
		fix = hint
	}
	d.report(check, LevelFail, fix, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

func (d *checks) privilege() {
	if uid := os.Geteuid(); uid != 0 {
		d.report("root", LevelFail, fixRoot, "running as user %d: namespaces and firewall rules need root", uid)
		return
	}
	d.report("root", LevelOK, "", "running as root")
}

const fixRoot = "sudo bottle doctor"

// needsRoot reports a check as not done if this process is not root: its result would
// be about the permissions of the user and not about the host.
func (d *checks) needsRoot(check string) bool {
	if os.Geteuid() == 0 {
		return false
	}
	d.report(check, LevelWarn, fixRoot, "not checked: needs root")
	return true
}

// containerd also returns an engine, or nil if it cannot connect.
func (d *checks) containerd(ctx context.Context) *bottle.Engine {
	e, err := bottle.Open(ctx, d.cfg)
	if err != nil {
		d.fail("containerd", err, "systemctl start containerd")
		return nil
	}
	v, err := e.Version(ctx)
	if err != nil {
		d.fail("containerd", err, "systemctl restart containerd")
		return e
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	if n, err := strconv.Atoi(major); err == nil && n < 2 {
		d.report("containerd", LevelFail, "install containerd 2 (https://github.com/containerd/containerd/releases)", "%s at %s is too old", v, d.cfg.Address)
		return e
	}
	d.report("containerd", LevelOK, "", "%s at %s, namespace %s", v, d.cfg.Address, d.cfg.Namespace)
	return e
}

// runtime checks that the program prints its version and, through containerd, that its
// shim answers.
func (d *checks) runtime(ctx context.Context, e *bottle.Engine, name string) {
	version, err := firstLine(ctx, name, "--version")
	if err != nil {
		missing := runtime.ErrNoRunsc
		if name == runtime.RuntimeRunc {
			missing = runtime.ErrNoRunc
		}
		d.fail(name, runtime.Hint(fmt.Errorf("%w: %w", missing, err)), "")
		return
	}
	if e == nil {
		d.report(name, LevelWarn, "fix containerd first", "%s; its shim was not checked", version)
		return
	}
	if err := e.CheckRuntime(ctx, name); err != nil {
		d.fail(name, err, "install "+name+" and its shim again")
		return
	}
	if err := e.ShimWarning(); err != nil && name == runtime.RuntimeRunsc {
		d.report(name, LevelWarn, "install bottle where containerd can run it, for example in /usr/local/bin",
			"%s; its shim answers, but agents are lost when containerd stops: it cannot run bottle as their shim: %v", version, err)
		return
	}
	d.report(name, LevelOK, "", "%s; its shim answers", version)
}

// programTimeout bounds the run time of a program. On an emulated host, starting a
// sandbox takes 10 s.
const programTimeout = time.Minute

func firstLine(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), err
}

// platform runs a program in a sandbox without network: only that shows whether
// gVisor's platform works on this kernel.
func (d *checks) platform(ctx context.Context) {
	const check = "gVisor"
	if _, err := exec.LookPath("runsc"); err != nil {
		return // reported by runtime
	}
	if d.needsRoot(check) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	state, err := os.MkdirTemp("", "bottle-doctor-")
	if err != nil {
		d.fail(check, err, "free space in "+os.TempDir())
		return
	}
	defer func() { _ = os.RemoveAll(state) }()
	out, err := exec.CommandContext(ctx, "runsc", "--root", state, "--platform=systrap", "--network=none", "--ignore-cgroups", "do", "true").CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		d.report(check, LevelFail, "use a kernel of at least 4.14.77 (https://gvisor.dev/docs/user_guide/faq/), or use --runtime runc, which gives up gVisor's isolation",
			"cannot run a sandbox on platform systrap: %v: %s", err, lines[len(lines)-1])
		return
	}
	kvm := "KVM is available and not used"
	if _, err := os.Stat("/dev/kvm"); err != nil {
		kvm = "KVM is not available and not needed"
	}
	d.report(check, LevelOK, "", "a sandbox runs on platform systrap; %s", kvm)
}

// network reports each part of netns.Check separately.
func (d *checks) network(ctx context.Context) {
	m, err := netns.New(netns.Config{RunDir: d.cfg.RunDir, PluginDirs: filepath.SplitList(d.cfg.CNIPath), ConfDir: d.cfg.CNIConf})
	if err != nil {
		d.fail("network", err, "set BOTTLE_RUN_DIR to an absolute path")
		return
	}
	info, err := m.Check(ctx)
	problems := map[netns.Subject]*netns.Problem{}
	for _, err := range hint.Split(err) {
		if p, ok := errors.AsType[*netns.Problem](err); ok {
			problems[p.Subject] = p
		} else {
			d.fail("network", err, "fix "+d.cfg.CNIConf)
		}
	}
	for _, part := range []struct {
		subject netns.Subject
		ok      string
	}{
		{netns.SubjectPlugins, "found in " + d.cfg.CNIPath},
		{netns.SubjectSubnet, info.Egress + " is free"},
		{netns.SubjectKernel, kernelRelease() + ": namespaces, bridges, veth pairs and nftables work"},
	} {
		if part.subject == netns.SubjectKernel && d.needsRoot(string(part.subject)) {
			continue
		}
		if p := problems[part.subject]; p != nil {
			d.fail(string(p.Subject), p, p.Fix)
		} else {
			d.report(string(part.subject), LevelOK, "", "%s", part.ok)
		}
	}
	d.firewall(ctx, m, info)
}

func (d *checks) firewall(ctx context.Context, m *netns.Manager, info netns.Info) {
	forward, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	switch {
	case err != nil:
		d.fail("forwarding", err, "mount -t proc proc /proc")
	case strings.TrimSpace(string(forward)) == "1":
		d.report("forwarding", LevelOK, "", "net.ipv4.ip_forward is on")
	default:
		d.report("forwarding", LevelOK, "", "net.ipv4.ip_forward is off; bottle turns it on while bottles run")
	}
	if d.needsRoot("firewall") {
		return
	}
	if err := m.VerifyHost(ctx); err != nil {
		d.fail("firewall", err, "bottle doctor --refresh")
		return
	}
	if len(info.Warnings) == 0 {
		detail := "no rule of the host drops what proxies send"
		for _, c := range info.Changes {
			if c.Subject == netns.SubjectFirewall {
				detail = "while bottles run: " + c.Detail
			}
		}
		d.report("firewall", LevelOK, "", "%s", detail)
	}
	for _, w := range info.Warnings {
		d.report(string(w.Subject), LevelWarn, w.Fix, "%s", w.Detail)
	}
}

func (d *checks) cgroups() {
	const check = "cgroups"
	var st unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &st); err != nil {
		d.fail(check, err, "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
		return
	}
	need := []string{"memory", "pids", "cpu"}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		data, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			d.fail(check, err, "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
			return
		}
		if missing := missingFrom(need, strings.Fields(string(data))); len(missing) > 0 {
			d.report(check, LevelFail, "boot with cgroup_enable="+strings.Join(missing, ","), "version 2, without %s", strings.Join(missing, ", "))
			return
		}
		d.swap(check, "version 2")
		return
	}
	var have []string
	for _, c := range need {
		if _, err := os.Stat("/sys/fs/cgroup/" + c); err == nil {
			have = append(have, c)
		}
	}
	if missing := missingFrom(need, have); len(missing) > 0 {
		d.report(check, LevelFail, "boot with cgroup_enable="+strings.Join(missing, ","), "version 1, without %s", strings.Join(missing, ", "))
		return
	}
	d.swap(check, "version 1")
}

func (d *checks) swap(check, version string) {
	if !runtime.SwapAccounting() {
		d.report(check, LevelWarn, "boot with swapaccount=1, or turn swap off", "%s, without swap accounting: bottles may use swap beyond their memory limit", version)
		return
	}
	d.report(check, LevelOK, "", "%s", version)
}

func missingFrom(need, have []string) []string {
	return slices.DeleteFunc(slices.Clone(need), func(n string) bool { return slices.Contains(have, n) })
}

// Thresholds of free space, in bytes.
const (
	lowDisk  = 10 << 30
	minDisk  = 1 << 30
	lowTmpfs = 64 << 20
)

func (d *checks) disk() {
	dir, free, _, err := freeSpace(d.cfg.StateDir)
	switch {
	case err != nil:
		d.fail("disk", err, "set BOTTLE_STATE_DIR to a directory")
	case free < minDisk:
		d.report("disk", LevelFail, "bottle cleanup, then remove unused images (bottle images, bottle rmi)", "%s free at %s", gib(free), dir)
	case free < lowDisk:
		d.report("disk", LevelWarn, "bottle cleanup, then remove unused images (bottle images, bottle rmi)", "%s free at %s", gib(free), dir)
	default:
		d.report("disk", LevelOK, "", "%s free at %s", gib(free), dir)
	}
}

func (d *checks) tmpfs() {
	dir, free, kind, err := freeSpace(d.cfg.RunDir)
	fix := fmt.Sprintf("mkdir -p %[1]s && mount -t tmpfs -o mode=700 tmpfs %[1]s", d.cfg.RunDir)
	switch {
	case err != nil:
		d.fail("tmpfs", err, fix)
	case kind != unix.TMPFS_MAGIC && kind != unix.RAMFS_MAGIC:
		d.report("tmpfs", LevelFail, fix, "%s is not on tmpfs: secrets would be written to disk", d.cfg.RunDir)
	case kind == unix.TMPFS_MAGIC && free < lowTmpfs:
		d.report("tmpfs", LevelWarn, "mount -o remount,size=256m "+mountOf(dir), "%d MiB free at %s", free>>20, dir)
	default:
		d.report("tmpfs", LevelOK, "", "%s is on tmpfs", d.cfg.RunDir)
	}
}

// freeSpace returns the free space and the type of the file system that contains dir,
// or will contain it.
func freeSpace(dir string) (at string, free uint64, kind int64, err error) {
	var st unix.Statfs_t
	for at = filepath.Clean(dir); ; at = filepath.Dir(at) {
		err = unix.Statfs(at, &st)
		if !errors.Is(err, unix.ENOENT) || at == "/" {
			break
		}
	}
	if err != nil {
		return at, 0, 0, fmt.Errorf("check %s: %w", at, err)
	}
	return at, st.Bavail * uint64(st.Bsize), st.Type, nil
}

// mountOf returns the mount point of dir's file system: the topmost parent directory on
// the same device.
func mountOf(dir string) string {
	var at, above unix.Stat_t
	for dir != "/" && unix.Stat(dir, &at) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && at.Dev == above.Dev {
		dir = filepath.Dir(dir)
	}
	return dir
}

func gib(n uint64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

func (d *checks) resolvers() {
	if servers, file := netns.HostResolvers(); len(servers) > 0 {
		d.report("resolver", LevelOK, "", "%s from %s", servers[0], file)
		return
	}
	d.report("resolver", LevelWarn, "add a name server that is not a loopback address to /etc/resolv.conf", "no name server with an IPv4 address other than loopback: proxies cannot resolve names")
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "kernel"
	}
	return unix.ByteSliceToString(u.Release[:])
}
