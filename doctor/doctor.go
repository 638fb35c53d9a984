package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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

// Levels of a finding.
const (
	LevelOK   = "ok"
	LevelWarn = "warn" // bottles run, but something may not work or is less safe
	LevelFail = "fail" // no bottle can run
)

// Finding is what Doctor says of one part of the host.
type Finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"`
	Detail string `json:"detail"`
	// Fix is what to do about it, empty where nothing is to be done.
	Fix string `json:"fix,omitempty"`
}

// Doctor looks at everything on the host that a bottle needs, and at the proxies'
// images of the manifest that spec names. It changes nothing but a scratch folder
// that it removes.
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
	d.resolvers()
	d.proxyImages(ctx, e, spec)
	return d.found
}

type checks struct {
	cfg   bottle.Config
	found []Finding
}

func (d *checks) say(check, level, fix, format string, args ...any) {
	d.found = append(d.found, Finding{Check: check, Level: level, Detail: fmt.Sprintf(format, args...), Fix: fix})
}

// fail tells an error with its own advice, or else with that given.
func (d *checks) fail(check string, err error, fix string) {
	if hint := hint.Of(err); hint != "" {
		fix = hint
	}
	d.say(check, LevelFail, fix, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}

func (d *checks) privilege() {
	if uid := os.Geteuid(); uid != 0 {
		d.say("root", LevelFail, "sudo bottle doctor", "it runs as user %d: namespaces and firewall rules need root", uid)
		return
	}
	d.say("root", LevelOK, "", "it runs as root")
}

// containerd also returns an engine if one can be had.
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
		d.say("containerd", LevelFail, "install containerd 2 (https://github.com/containerd/containerd/releases)", "%s at %s is too old", v, d.cfg.Address)
		return e
	}
	d.say("containerd", LevelOK, "", "%s at %s, namespace %s", v, d.cfg.Address, d.cfg.Namespace)
	return e
}

// runtime asks the program for its version and, through containerd, its shim
// whether it answers.
func (d *checks) runtime(ctx context.Context, e *bottle.Engine, name string) {
	version, err := firstLine(ctx, name, "--version")
	if err != nil {
		missing := runtime.ErrNoRunsc
		if name == runtime.RuntimeRunc {
			missing = runtime.ErrNoRunc
		}
		d.fail(name, bottle.RuntimeHint(fmt.Errorf("%w: %w", missing, err)), "")
		return
	}
	if e == nil {
		d.say(name, LevelWarn, "fix containerd first", "%s; whether its shim answers is not known", version)
		return
	}
	if err := e.Runtime(ctx, name); err != nil {
		d.fail(name, err, "install "+name+" and its shim again")
		return
	}
	d.say(name, LevelOK, "", "%s; its shim answers", version)
}

// programTime bounds a program that doctor runs. A sandbox alone takes 10 s on a
// host that is itself emulated.
const programTime = time.Minute

func firstLine(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line), err
}

// platform runs a program in a sandbox without network, as only that tells
// whether gVisor's platform works on this kernel.
func (d *checks) platform(ctx context.Context) {
	const check = "gVisor"
	if _, err := exec.LookPath("runsc"); err != nil {
		return // told already
	}
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	state, err := os.MkdirTemp("", "bottle-doctor-")
	if err != nil {
		d.fail(check, err, "make room in "+os.TempDir())
		return
	}
	defer func() { _ = os.RemoveAll(state) }()
	out, err := exec.CommandContext(ctx, "runsc", "--root", state, "--platform=systrap", "--network=none", "--ignore-cgroups", "do", "true").CombinedOutput()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		d.say(check, LevelFail, "use a kernel of at least 4.14.77 (https://gvisor.dev/docs/user_guide/faq/), or --runtime runc and lose its isolation",
			"a sandbox on platform systrap does not run: %v: %s", err, lines[len(lines)-1])
		return
	}
	kvm := "KVM, which is not used, is there too"
	if _, err := os.Stat("/dev/kvm"); err != nil {
		kvm = "KVM, which is not needed, is not there"
	}
	d.say(check, LevelOK, "", "a sandbox runs on platform systrap; %s", kvm)
}

// network tells each part of netns.Check by itself.
func (d *checks) network(ctx context.Context) {
	m, err := netns.New(netns.Config{RunDir: d.cfg.RunDir, PluginDirs: filepath.SplitList(d.cfg.CNIPath), ConfDir: d.cfg.CNIConf})
	if err != nil {
		d.fail("network", err, "name an absolute folder with BOTTLE_RUN_DIR")
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
		fine    string
	}{
		{netns.SubjectPlugins, "found in " + d.cfg.CNIPath},
		{netns.SubjectSubnet, info.Egress + " is free"},
		{netns.SubjectKernel, kernelRelease() + ": namespaces, bridges, veth pairs and nftables work"},
	} {
		if p := problems[part.subject]; p != nil {
			d.fail(string(p.Subject), p, p.Fix)
		} else {
			d.say(string(part.subject), LevelOK, "", "%s", part.fine)
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
		d.say("forwarding", LevelOK, "", "net.ipv4.ip_forward is on")
	default:
		d.say("forwarding", LevelOK, "", "net.ipv4.ip_forward is off; it is on while bottles run")
	}
	if err := m.VerifyHost(ctx); err != nil {
		d.fail("firewall", err, "bottle doctor --refresh")
		return
	}
	if len(info.Warnings) == 0 {
		detail := "nothing of the host's drops what proxies send"
		for _, c := range info.Changes {
			if c.Subject == netns.SubjectFirewall {
				detail = "while bottles run: " + c.Detail
			}
		}
		d.say("firewall", LevelOK, "", "%s", detail)
	}
	for _, w := range info.Warnings {
		d.say(string(w.Subject), LevelWarn, w.Fix, "%s", w.Detail)
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
		if lacks := without(need, strings.Fields(string(data))); len(lacks) > 0 {
			d.say(check, LevelFail, "boot with cgroup_enable="+strings.Join(lacks, ","), "version 2, without %s", strings.Join(lacks, ", "))
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
	if lacks := without(need, have); len(lacks) > 0 {
		d.say(check, LevelFail, "boot with cgroup_enable="+strings.Join(lacks, ","), "version 1, without %s", strings.Join(lacks, ", "))
		return
	}
	d.swap(check, "version 1")
}

func (d *checks) swap(check, version string) {
	if !runtime.SwapAccounting() {
		d.say(check, LevelWarn, "boot with swapaccount=1, or turn swap off", "%s, which does not count swap: bottles may use it beyond their limit of memory", version)
		return
	}
	d.say(check, LevelOK, "", "%s", version)
}

func without(need, have []string) (lacks []string) {
	there := map[string]bool{}
	for _, h := range have {
		there[h] = true
	}
	for _, n := range need {
		if !there[n] {
			lacks = append(lacks, n)
		}
	}
	return lacks
}

// Room below which a host is short, in bytes.
const (
	fewDisk  = 10 << 30
	noDisk   = 1 << 30
	fewTmpfs = 64 << 20
)

func (d *checks) disk() {
	dir, free, _, err := roomAt(d.cfg.StateDir)
	switch {
	case err != nil:
		d.fail("disk", err, "name a folder with BOTTLE_STATE_DIR")
	case free < noDisk:
		d.say("disk", LevelFail, "bottle cleanup, and remove images that nobody needs (bottle images, bottle rmi)", "%s free at %s", gib(free), dir)
	case free < fewDisk:
		d.say("disk", LevelWarn, "bottle cleanup, and remove images that nobody needs (bottle images, bottle rmi)", "%s free at %s", gib(free), dir)
	default:
		d.say("disk", LevelOK, "", "%s free at %s", gib(free), dir)
	}
}

func (d *checks) tmpfs() {
	dir, free, kind, err := roomAt(d.cfg.RunDir)
	fix := fmt.Sprintf("mkdir -p %[1]s && mount -t tmpfs -o mode=700 tmpfs %[1]s", d.cfg.RunDir)
	switch {
	case err != nil:
		d.fail("tmpfs", err, fix)
	case kind != unix.TMPFS_MAGIC && kind != unix.RAMFS_MAGIC:
		d.say("tmpfs", LevelFail, fix, "%s is not on tmpfs, so that secrets would come to a disk", d.cfg.RunDir)
	case kind == unix.TMPFS_MAGIC && free < fewTmpfs:
		d.say("tmpfs", LevelWarn, "mount -o remount,size=256m "+mountOf(dir), "%d MiB free at %s", free>>20, dir)
	default:
		d.say("tmpfs", LevelOK, "", "%s is on tmpfs", d.cfg.RunDir)
	}
}

// roomAt looks at the file system that a folder is on, or will be.
func roomAt(dir string) (at string, free uint64, kind int64, err error) {
	var st unix.Statfs_t
	for at = filepath.Clean(dir); ; at = filepath.Dir(at) {
		err = unix.Statfs(at, &st)
		if !errors.Is(err, unix.ENOENT) || at == "/" {
			break
		}
	}
	if err != nil {
		return at, 0, 0, fmt.Errorf("look at %s: %w", at, err)
	}
	return at, st.Bavail * uint64(st.Bsize), st.Type, nil
}

// mountOf is where the file system of a folder is mounted: the last folder on the
// way up that is on the same device.
func mountOf(dir string) string {
	var at, above unix.Stat_t
	for dir != "/" && unix.Stat(dir, &at) == nil && unix.Stat(filepath.Dir(dir), &above) == nil && at.Dev == above.Dev {
		dir = filepath.Dir(dir)
	}
	return dir
}

func gib(n uint64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

func (d *checks) resolvers() {
	if servers, file := bottle.HostResolvers(); len(servers) > 0 {
		d.say("resolver", LevelOK, "", "%s, of %s", servers[0], file)
		return
	}
	d.say("resolver", LevelWarn, "name a server that is not on loopback in /etc/resolv.conf", "no name server with an IPv4 address beyond loopback: proxies cannot look names up")
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "kernel"
	}
	return unix.ByteSliceToString(u.Release[:])
}
