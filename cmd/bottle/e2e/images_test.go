package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const demoImage = "docker.io/library/bottle-demo:latest"

// pushed puts the lab's small image into the registry, under a name that the
// store does not have.
func pushed(t *testing.T, u user, r *labtest.Registry) string {
	t.Helper()
	ref := r.Host + "/demo:1"
	ctr(t, "images", "tag", demoImage, ref)
	res := u.bottle("push", "--quiet", ref)
	res.want(t, 0, "")
	if res.stderr != "" {
		t.Errorf("a quiet push says %q", res.stderr)
	}
	u.bottle("rmi", ref).want(t, 0, ref+"\n")
	return ref
}

// logged returns the user after `docker login`, who trusts the registry.
func (u user) logged(r *labtest.Registry) user {
	u.t.Helper()
	dir := u.t.TempDir()
	data, err := json.Marshal(map[string]any{"auths": map[string]any{r.Host: map[string]any{"username": r.User, "password": r.Password}}})
	if err != nil {
		u.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		u.t.Fatal(err)
	}
	return u.with("DOCKER_CONFIG="+dir, "BOTTLE_HOSTS_DIR="+r.HostsDir(u.t))
}

// TestPullAndRun pulls from a private registry with a command, and with a run whose
// image is missing.
func TestPullAndRun(t *testing.T) {
	leakcheck.Check(t)
	r := labtest.PrivateRegistry(t)
	u := newUser(t).logged(r)
	ref := pushed(t, u, r)
	t.Cleanup(func() { u.bottle("rmi", ref) })

	res := u.bottle("pull", ref)
	if name, _, _ := strings.Cut(res.stdout, "@sha256:"); res.code != 0 || name != ref {
		t.Fatalf("exit %d, %q; %s", res.code, res.stdout, res.stderr)
	}
	if strings.Contains(res.stderr, "\x1b") {
		t.Errorf("progress without a terminal: %q", res.stderr)
	}
	u.bottle("pull", "-q", ref).want(t, 0, "")
	u.bottle("rmi", ref).want(t, 0, ref+"\n")

	u = u.with("CLAUDE_BOTTLE_IMAGE=" + ref)
	dry := u.bottle("run", "sh", "--proxy", "builtin", "--dry-run", "--json")
	if dry.code != 0 || !strings.Contains(dry.stdout, `"pull": "`+ref+`"`) {
		t.Errorf("the plan does not name the image to pull: %s", dry.stdout)
	}
	if list := u.bottle("images"); strings.Contains(list.stdout, ref) {
		t.Error("a dry run pulls")
	}
	u.run("sh", "-c", "echo inside").want(t, 0, "inside\n")
	if list := u.bottle("images"); !strings.Contains(list.stdout, ref) {
		t.Errorf("the image was not kept:\n%s%s", list.stdout, list.stderr)
	}
}

// TestPullInterrupted: an interrupt immediately ends a pull from a registry that does
// not answer.
func TestPullInterrupted(t *testing.T) {
	leakcheck.Check(t)
	host := silentHost(t)
	cmd := newUser(t).command("pull", "--debug", host.addr+"/a:1")
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	host.accept(t) // the daemon has asked
	begin := time.Now()
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // its code is looked at below
	if code, took := cmd.ProcessState.ExitCode(), time.Since(begin); code != 130 || took > 2*time.Second {
		t.Errorf("exit %d after %s: %s", code, took, errs.String())
	}
}

// TestCwd runs an image with the working directory: it exists and
// belongs to the agent, and the directory on the host does not change.
func TestCwd(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("hello", "outside\n")
	const name = "docker.io/library/bottle-e2e:cwd"
	u = u.with("CLAUDE_BOTTLE_DERIVED_IMAGE=" + name)
	t.Cleanup(func() { u.bottle("rmi", name) })
	run := func(args ...string) result {
		return u.bottle(append([]string{"run", "sh", "--proxy", "builtin", "--yes", "--cwd-image"}, args...)...)
	}
	run("--", "-c", "cat hello; pwd; echo inside >hello && cat hello").want(t, 0, "outside\n/workspace\ninside\n")
	run("--", "-c", "cat hello").want(t, 0, "outside\n")
	if data, err := os.ReadFile(filepath.Join(u.dir, "hello")); err != nil || string(data) != "outside\n" {
		t.Errorf("the directory's file is %q, %v", data, err)
	}
	u.write(".bottleignore", "hello\n")
	run("--cwd-target", "/srv/code", "--", "-c", "pwd; ls -a | sort | tr '\\n' ' '").want(t, 0, "/srv/code\n. .. .bottleignore bottle.yaml ")
	var list []struct {
		Ref, Directory string
		UsedBy         []string `json:"used_by"`
	}
	if err := json.Unmarshal([]byte(u.bottle("images", "--json").stdout), &list); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, i := range list {
		found = found || i.Ref == name && i.Directory == u.dir && len(i.UsedBy) == 0
	}
	if !found {
		t.Errorf("the images are %+v", list)
	}
}

// TestRmiUsed checks that the image of a bottle cannot be removed.
func TestRmiUsed(t *testing.T) {
	leakcheck.Check(t)
	const name = "docker.io/library/bottle-e2e:used"
	ctr(t, "images", "tag", demoImage, name)
	u := newUser(t).with("CLAUDE_BOTTLE_IMAGE=" + name)
	l := u.start("claude-bottle-e2e-used")
	res := u.bottle("rmi", "bottle-e2e:used")
	oneLine(t, res, "bottle-e2e:used is used by claude-bottle-e2e-used", "rmi -f")
	u.bottle("rmi", "-f", "bottle-e2e:used").want(t, 0, name+"\n")
	if out := u.bottle("exec", l.name, "cat", "/etc/hostname"); out.code != 0 {
		t.Errorf("the bottle has lost its files: %s", out.stderr)
	}
	l.end()
}
