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

// rootCaps are what a root agent has, as /proc/PID/status writes them: CHOWN,
// DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP and SYS_CHROOT
// (linux/capability.h).
var rootCaps = fmt.Sprintf("%016x", 1<<0|1<<1|1<<3|1<<4|1<<5|1<<6|1<<7|1<<8|1<<18)

// TestAgentIsKeptSmall looks from inside at what an agent's processes are and
// have, PID 1 and a session: under both runtimes, as root and as another user.
func TestAgentIsKeptSmall(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	for _, runtimeName := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
		for user, caps := range map[string]string{"": rootCaps, "1000:1000": strings.Repeat("0", 16)} {
			t.Run(fmt.Sprintf("%s as %q", runtimeName, user), func(t *testing.T) {
				// What an image says of itself gives it nothing.
				hostileImage(t, ocispec.ImageConfig{User: user, Labels: map[string]string{
					"io.kubernetes.cri.container-type": "container", "bottle.name": "another", "large": strings.Repeat("x", 1<<20),
				}})
				b, err := launchHostile(t, e, runtimeName)
				if err != nil {
					t.Fatal(err)
				}
				defer remove(t, b)
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
	}
}

// inside is a bottle as it looks from inside.
type inside struct {
	t    *testing.T
	e    *Engine
	name string
}

func (in inside) show(file string) (string, error) {
	in.t.Helper()
	out, code := output(in.t, in.e, in.name, "/probe", "cat", file)
	if code != 0 {
		return "", fmt.Errorf("exit %d: %s", code, out)
	}
	return out, nil
}

func (in inside) must(file string) string {
	in.t.Helper()
	out, err := in.show(file)
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
		want["Seccomp"] = "2" // a filter; gVisor's own is outside
	}
	for k, v := range want {
		if k == "CapAmb" && got[k] == "" {
			continue // gVisor has none to tell of
		}
		if got[k] != v {
			in.t.Errorf("%s: %s is %q, want %q", file, k, got[k], v)
		}
	}
}

// limits are those of the session.
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

// files: a name of its own, and nobody to ask about others.
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

// devices: none beyond those that every container has. Gvisor's are its own.
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
			in.t.Errorf("the device %s", name)
		}
	}
	if !slices.Contains(names, "null") {
		in.t.Errorf("no list of devices: %q", out)
	}
}

// hidden: of what the host's kernel tells there, nothing is to be read.
func (in inside) hidden() {
	in.t.Helper()
	shown := 0
	for _, file := range strings.Fields("/proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/timer_list /proc/timer_stats") {
		out, err := in.show(file)
		if err == nil && out != "" {
			in.t.Errorf("%s is to be read: %.40q", file, out)
		}
		// The control: on the host some of them say something.
		if f, err := os.Open(file); err == nil {
			n, _ := f.Read(make([]byte, 1))
			shown += n
			_ = f.Close()
		}
	}
	if shown == 0 {
		in.t.Error("the host's kernel shows none of these either, so that this shows nothing")
	}
	for _, dir := range strings.Fields("/proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap") {
		out, _ := output(in.t, in.e, in.name, "/probe", "ls", dir)
		if !strings.HasSuffix(out, " []\n") && !strings.Contains(out, "no such file") {
			in.t.Errorf("%s is to be seen: %s", dir, out)
		}
	}
}

// sockets: AF_VSOCK leads to the machine that the host is on, whatever network
// namespace it is in, and AF_ALG into the kernel (linux/socket.h).
func (in inside) sockets() {
	in.t.Helper()
	const unix, inet, alg, vsock = "1", "2", "38", "40"
	out, code := output(in.t, in.e, in.name, "/probe", "sockets", unix, inet, alg, vsock)
	if code != 0 || out != "1\n2\n" {
		in.t.Errorf("sockets of the families %q, exit %d; want 1 and 2", out, code)
	}
}
