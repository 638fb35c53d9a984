package bottle

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// rootCaps are the capabilities of a root agent, as in /proc/PID/status: CHOWN,
// DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP and SYS_CHROOT
// (linux/capability.h).
var rootCaps = fmt.Sprintf("%016x", 1<<0|1<<1|1<<3|1<<4|1<<5|1<<6|1<<7|1<<8|1<<18)

// TestAgentPrivileges checks the privileges and resources of an agent's processes from
// inside, for PID 1 and a session, under both runtimes, as root and as another user.
func TestAgentPrivileges(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	check := func(name, runtimeName, user string, launch func(*testing.T, *Engine, string) (*Bottle, error)) {
		t.Run(fmt.Sprintf("%s as %q", name, user), func(t *testing.T) {
			// The image's labels must have no effect.
			hostileImage(t, ocispec.ImageConfig{User: user, Labels: map[string]string{
				"io.kubernetes.cri.container-type": "container", "bottle.name": "another", "large": strings.Repeat("x", 1<<20),
			}})
			b, err := launch(t, e, runtimeName)
			if err != nil {
				t.Fatal(err)
			}
			defer remove(t, b)
			caps := rootCaps
			if user != "" {
				caps = strings.Repeat("0", 16)
			}
			in := inside{t, e, b.Name}
			in.status("/proc/1/status", runtimeName, caps)
			in.status("/proc/self/status", runtimeName, caps)
			in.limits(runtimeName)
			in.files()
			in.devices(runtimeName)
			in.hidden()
			in.sockets()
		})
	}
	for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		for _, user := range []string{"", "1000:1000"} {
			check(runtimeName, runtimeName, user, launchHostile)
		}
	}
	check("claimed", runtime.RuntimeRunsc, "", claimHostile)
}

// inside checks a bottle from inside.
type inside struct {
	t    *testing.T
	e    *Engine
	name string
}

func (in inside) read(file string) (string, error) {
	in.t.Helper()
	out, code := output(in.t, in.e, in.name, "/probe", "cat", file)
	if code != 0 {
		return "", fmt.Errorf("exit %d: %s", code, out)
	}
	return out, nil
}

func (in inside) must(file string) string {
	in.t.Helper()
	out, err := in.read(file)
	if err != nil {
		in.t.Errorf("%s: %v", file, err)
	}
	return out
}

func (in inside) status(file, runtimeName, caps string) {
	in.t.Helper()
	got := map[string]string{}
	for line := range strings.Lines(in.must(file)) {
		k, v, _ := strings.Cut(line, ":")
		got[k] = strings.TrimSpace(v)
	}
	none := strings.Repeat("0", 16)
	want := map[string]string{"CapInh": none, "CapPrm": caps, "CapEff": caps, "CapBnd": caps, "CapAmb": none, "NoNewPrivs": "1"}
	if runtimeName == runtime.RuntimeRunc {
		want["Seccomp"] = "2" // a filter; gVisor applies its own outside
	}
	for k, v := range want {
		if k == "CapAmb" && got[k] == "" {
			continue // gVisor does not report it
		}
		if got[k] != v {
			in.t.Errorf("%s: %s is %q, want %q", file, k, got[k], v)
		}
	}
}

// limits checks the resource limits of the session.
func (in inside) limits(runtimeName string) {
	in.t.Helper()
	got := map[string][]string{}
	for line := range strings.Lines(in.must("/proc/self/limits")) {
		if name, rest, ok := strings.Cut(line, "  "); ok {
			got[name] = strings.Fields(rest)
		}
	}
	want := map[string]string{"Max core file size": "0"}
	if runtimeName == runtime.RuntimeRunsc {
		want["Max processes"] = "4096"
	}
	for name, v := range want {
		if f := got[name]; len(f) < 2 || f[0] != v || f[1] != v {
			in.t.Errorf("%s: %v, want %s", name, f, v)
		}
	}
}

// files checks that the bottle has its own host name, and no resolver.
func (in inside) files() {
	in.t.Helper()
	for file, want := range map[string]string{
		"/etc/hosts":                "127.0.0.1\tlocalhost\n127.0.1.1\t" + in.name + "\n",
		"/etc/hostname":             in.name + "\n",
		"/etc/resolv.conf":          "# The egress proxy resolves names.\n",
		"/proc/sys/kernel/hostname": in.name + "\n",
	} {
		if got := in.must(file); got != want {
			in.t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}

// devices checks that there are only the devices of every container, and gVisor's own.
func (in inside) devices(runtimeName string) {
	in.t.Helper()
	standard := strings.Fields("console core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero")
	if runtimeName == runtime.RuntimeRunsc {
		standard = append(standard, "char", "fuse", "net")
	}
	out, _ := output(in.t, in.e, in.name, "/probe", "ls", "/dev")
	_, list, _ := strings.Cut(out, "[")
	names := strings.Fields(strings.TrimRight(list, "]\n"))
	for _, name := range names {
		if !slices.Contains(standard, name) {
			in.t.Errorf("unexpected device %s", name)
		}
	}
	if !slices.Contains(names, "null") {
		in.t.Errorf("invalid list of devices: %q", out)
	}
}

// hidden checks that files with information about the host's kernel cannot be read.
func (in inside) hidden() {
	in.t.Helper()
	shown := 0
	for _, file := range strings.Fields("/proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/timer_list /proc/timer_stats") {
		out, err := in.read(file)
		if err == nil && out != "" {
			in.t.Errorf("%s can be read: %.40q", file, out)
		}
		// The control: on the host some of them have content.
		if f, err := os.Open(file); err == nil {
			n, _ := f.Read(make([]byte, 1))
			shown += n
			_ = f.Close()
		}
	}
	if shown == 0 {
		in.t.Error("invalid test: the host has none of these files")
	}
	for _, dir := range strings.Fields("/proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap") {
		out, _ := output(in.t, in.e, in.name, "/probe", "ls", dir)
		if !strings.HasSuffix(out, " []\n") && !strings.Contains(out, "no such file") {
			in.t.Errorf("%s is not empty: %s", dir, out)
		}
	}
}

// sockets checks that dangerous socket families are not available: AF_VSOCK reaches the
// machine that hosts the virtual machine, from any network namespace, and AF_ALG exposes
// code of the kernel (linux/socket.h).
func (in inside) sockets() {
	in.t.Helper()
	const unix, inet, alg, vsock = "1", "2", "38", "40"
	out, code := output(in.t, in.e, in.name, "/probe", "sockets", unix, inet, alg, vsock)
	if code != 0 || out != "1\n2\n" {
		in.t.Errorf("available socket families %q, exit %d; want 1 and 2", out, code)
	}
}
