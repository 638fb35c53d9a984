//go:build kube

package clustertest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const repoURL = "https://git.allowed.test/demo.git"

// workers are agents on one repository. The first one commits and ends, the second one leaves
// work uncommitted and stays, and the third one makes a commit that git refuses.
const workers = `version: 1
bottles:
  dev:
    image: lab.test/agent:test
    env: {TOKEN: {from: TOKEN}}
    egress: {allow: [git.allowed.test]}
    proxy: {kind: builtin}
    git: {name: A Name, email: a@example.com}
    limits: {memory: 256m, disk: 1g}
agents:
  impl:
    bottle: dev
    kind: claude
    command:
      - bash
      - -ec
      - |
        branch=$(git branch --show-current)
        case $branch in
          bottle/many)
            echo "of $branch" >who; git add who; git commit -qm "work of $branch"
            exit 3 ;;
          bottle/many-2) echo left >left ;;
          bottle/many-3)
            tree=$(printf '100644 blob %s\t.git\n' "$(git hash-object -w --stdin </dev/null)" | git mktree)
            git reset -q --soft "$(git commit-tree -m bad -p HEAD "$tree")" ;;
        esac
        echo done with $branch
        exec sleep infinity
`

// TestKubeMany runs several agents on one repository, which their pods clone through their
// proxies, and fetches their work.
func TestKubeMany(t *testing.T) {
	t.Parallel()
	names := []string{"bottle-many", "bottle-many-2", "bottle-many-3"}
	t.Cleanup(func() {
		_, _ = tryKubectl("", append([]string{"delete", "namespace", "--wait=false", "--ignore-not-found"}, names...)...)
	})
	run := bottle(t, workers, append([]string{"run", "impl", "-n", "3", "--detach", "--repo", repoURL, "--namespace", names[0]}, ownImage...)...)
	out, errs, code := output(t, run)
	got := strings.Fields(out)
	slices.Sort(got)
	if code != 0 || !slices.Equal(got, names) {
		t.Fatalf("run: exit code %d, %q, %s", code, out, errs)
	}
	user := t.TempDir()
	git := func(args ...string) (string, error) {
		cmd := exec.Command("git", append([]string{"-C", user}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+user)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := git(args...)
		if err != nil {
			t.Fatalf("git %q: %v, %s", args, err, out)
		}
		return out
	}
	if out, err := exec.Command("git", "clone", "-q", repoURL, user).CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	head := must("rev-parse", "HEAD")
	fetch := func(args ...string) (string, int) {
		t.Helper()
		cmd := bottle(t, workers, append([]string{"fetch"}, args...)...)
		cmd.Dir = user
		_, errs, code := output(t, cmd)
		return errs, code
	}
	for _, name := range names[1:] {
		waitLog(t, "done with bottle/"+strings.TrimPrefix(name, "bottle-"), "--namespace", name, "agent", "-c", "agent")
	}

	// The first one has ended, and its work can still be fetched.
	kubectl(t, "", "--namespace", names[0], "wait", "--timeout", "60s", "--for", "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}=3", "pod/agent")
	if out, _, _ := output(t, bottle(t, workers, "list")); !strings.Contains(out, "exited (3)") {
		t.Errorf("list: %s", out)
	}
	if errs, code := fetch("many"); code != 0 || must("log", "--format=%an %s", head+"..bottle/many") != "A Name work of bottle/many" {
		t.Errorf("fetch: exit code %d, %s, %s", code, errs, must("log", "--oneline", "--all"))
	}
	if got := must("show", "bottle/many:who"); got != "of bottle/many" {
		t.Errorf("the file of the first agent: %s", got)
	}
	// The second one has uncommitted work only.
	if errs, code := fetch(names[1], "--branch", "try"); code != 0 || must("show", "try:left") != "left" || must("rev-parse", "try^") != head {
		t.Errorf("fetch of uncommitted work: exit code %d, %s", code, errs)
	}
	// The third one's is refused by the checks of what arrives.
	if errs, code := fetch(names[2]); code == 0 || !strings.Contains(errs, ".git") {
		t.Errorf("fetch of a tree with .git: exit code %d, %s", code, errs)
	}
	if out, err := git("rev-parse", "--verify", "bottle/many-3"); err == nil {
		t.Errorf("after a refused fetch, bottle/many-3 is %s", out)
	}
	// Control: without these checks git takes it.
	must("-c", "protocol.ext.allow=always", "-c", "transfer.fsckObjects=false", "fetch", "-q", "ext::bottle kube exec "+names[2]+" -- git upload-pack .", "HEAD")

	for _, name := range names {
		log := kubectl(t, "", "--namespace", name, "logs", "deployment/proxy")
		if !strings.Contains(log, "git.allowed.test") {
			t.Errorf("the proxy of %s has not been used for the clone: %s", name, log)
		}
	}
	if out := kubectl(t, "", "--namespace", names[0], "get", "pod", "agent", "-o", `jsonpath={.spec.containers[?(@.name=="work")].env}`); out != "" {
		t.Errorf("the container of the work has variables: %s", out)
	}
	if _, errs, code := output(t, bottle(t, workers, append([]string{"rm"}, names...)...)); code != 0 {
		t.Errorf("rm: exit code %d, %s", code, errs)
	}
}

// TestKubeRepoErrors: a repository that the policy does not allow is refused before anything is
// created, and one that cannot be cloned leaves nothing behind.
func TestKubeRepoErrors(t *testing.T) {
	t.Parallel()
	const ns = "bottle-norepo"
	t.Cleanup(func() { _, _ = tryKubectl("", "delete", "namespace", ns, "--wait=false", "--ignore-not-found") })
	run := func(repo string) string {
		t.Helper()
		_, errs, code := output(t, bottle(t, workers, append([]string{"run", "impl", "--detach", "--repo", repo, "--namespace", ns}, ownImage...)...))
		if code != 125 {
			t.Errorf("%s: exit code %d, %s", repo, code, errs)
		}
		return errs
	}
	if errs := run("https://refused.test/demo.git"); !strings.Contains(errs, "refused.test") || !strings.Contains(errs, "egress.allow") {
		t.Errorf("a host that is not allowed: %s", errs)
	}
	if out, err := tryKubectl("", "get", "namespace", ns); err == nil {
		t.Errorf("a namespace was created: %s", out)
	}
	if errs := run("https://git.allowed.test/none.git"); !strings.Contains(errs, "none.git") || !strings.Contains(errs, "not found") {
		t.Errorf("a repository that does not exist: %s", errs)
	}
	if phase, err := tryKubectl("", "get", "namespace", ns, "-o", "jsonpath={.status.phase}"); err == nil && phase != "Terminating" {
		t.Errorf("the namespace is %s", fmt.Sprint(phase, err))
	}
}
