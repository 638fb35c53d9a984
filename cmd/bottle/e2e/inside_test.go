package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const imagesManifest = `
version: 1
bottles:
  demo:
    image: bottle-demo:latest
    egress: {allow: [allowed.test]}
  bare: {image: "e2e-bare:latest"}
agents:
  demo: {bottle: demo, command: [demoagent]}
  bare: {bottle: bare, command: [/demoagent]}
`

// TestWalls runs the demo's agent, which tries ways out of the bottle and
// knows the expected results. The control is the same agent on the host, where each
// way is open.
func TestWalls(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", imagesManifest)
	r := u.run("demo")
	if r.code != 0 || !strings.Contains(r.stdout, "all checks passed") {
		t.Errorf("exit %d:\n%s%s", r.code, r.stdout, r.stderr)
	}
	program := filepath.Join(t.TempDir(), "demoagent")
	buildAgent(t, program)
	control := exec.Command(program)
	control.Env = append(os.Environ(), "SSL_CERT_FILE="+os.Getenv("LAB_CA"))
	out, err := control.CombinedOutput()
	for _, open := range []string{"tcp 198.51.101.10:443", "dns allowed.test", "https://refused.test/: got ok"} {
		_, wrong, _ := strings.Cut(string(out), "FAILED:")
		if err == nil || !strings.Contains(wrong, open) {
			t.Errorf("outside of a bottle %q is closed too, so that the test shows nothing: %v\n%s", open, err, out)
		}
	}
}

// TestPrivileges checks the agent's process from inside.
func TestPrivileges(t *testing.T) {
	leakcheck.Check(t)
	r := newUser(t).run("sh", "-c", `grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs):' /proc/self/status; id -u; ip route | grep -v '^127'; grep -c nameserver /etc/resolv.conf; pwd`)
	r.want(t, 0, "CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n"+
		"CapAmb:\t0000000000000000\nNoNewPrivs:\t1\n1000\n10.77.0.0/30 dev eth0 proto unspec scope link \n0\n/workspace\n")
}

// TestBareImage runs an image of a single program: without a shell, sleep, a passwd
// file and the directories that bottle mounts on.
func TestBareImage(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", imagesManifest)
	importBare(t)
	r := u.run("bare", "dial", "198.51.101.10:443")
	if r.code != 1 || !strings.HasPrefix(r.stdout, "unreachable") {
		t.Errorf("exit %d: %q\n%s", r.code, r.stdout, r.stderr)
	}
}

func buildAgent(t *testing.T, file string) {
	t.Helper()
	cmd := exec.Command("go", "build", "-o", file, "github.com/bot-bottle/bottle/scripts/demoagent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the demo's agent: %v\n%s", err, out)
	}
}

func importBare(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	root, archive := filepath.Join(dir, "root"), filepath.Join(dir, "bare.tar")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	buildAgent(t, filepath.Join(root, "demoagent"))
	for _, step := range [][]string{
		{"go", "run", "github.com/bot-bottle/bottle/scripts/mkimage", "--out", archive, "--ref", "docker.io/library/e2e-bare:latest",
			"--workdir", "/made/when/missing", "--layer-dir", root, "--", "/demoagent"},
		{"ctr", "images", "import", archive},
	} {
		cmd := exec.Command(step[0], step[1:]...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", step, err, out)
		}
	}
	t.Cleanup(func() { ctr(t, "images", "rm", "--sync", "docker.io/library/e2e-bare:latest") })
}

// TestInitReaps leaves orphans behind; the agent's PID 1 must reap them.
func TestInitReaps(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-reap")
	u.exec(l.name, "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do sh -c 'sh -c true & sleep 0.1 &' ; done").want(t, 0, "")
	// Each orphan exits within a tenth of a second.
	r := u.exec(l.name, "sh", "-c", "sleep 1; ps -eo stat=,comm=")
	if r.code != 0 || strings.Contains(r.stdout, "Z") || !strings.Contains(r.stdout, "init") {
		t.Errorf("exit %d:\n%s", r.code, r.stdout)
	}
}
