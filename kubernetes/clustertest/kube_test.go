//go:build kube

package clustertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// bottle returns a command of bottle kube, in a directory with the manifest.
func bottle(t *testing.T, manifest string, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "bottle.yaml"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bottle", append([]string{"kube"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TOKEN="+secretValue, "HOME="+dir)
	return cmd
}

func output(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), errs.String(), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), 0
}

var ownImage = []string{"--bottle-image", "lab.test/bottle:test"}

// TestKube uses an agent by the commands of bottle kube. The cluster enforces no policies:
// the agent has walls.
func TestKube(t *testing.T) {
	t.Parallel()
	const ns = "bottle-kube"
	run := append([]string{"run", "impl", "--detach", "--namespace", ns}, ownImage...)
	if _, errs, code := output(t, bottle(t, agentManifest, run...)); code != 0 || !strings.Contains(errs, "runs on the cluster") {
		t.Fatalf("run: exit code %d, %s", code, errs)
	}
	t.Cleanup(func() { _, _ = tryKubectl("", "delete", "namespace", ns, "--wait=false", "--ignore-not-found") })
	if _, errs, code := output(t, bottle(t, agentManifest, run...)); code == 0 || !strings.Contains(errs, "exists already") {
		t.Errorf("a second run: exit code %d, %s", code, errs)
	}
	if out := kubectl(t, "", "--namespace", ns, "get", "pod", "agent", "-o", "jsonpath={.status.phase}"); out != "Running" {
		t.Errorf("after a second run, the agent is %s", out)
	}
	waitLog(t, "looked around", "--namespace", ns, "agent", "-c", "agent")

	out, _, _ := output(t, bottle(t, agentManifest, "list"))
	if !strings.Contains(out, ns) || !strings.Contains(out, "running") || !strings.Contains(out, "gvisor") {
		t.Errorf("list: %s", out)
	}
	var list []struct{ Name, Status string }
	out, _, _ = output(t, bottle(t, agentManifest, "list", "--json"))
	err := json.Unmarshal([]byte(out), &list)
	// Namespaces of other tests may still be on their way out.
	if i := slices.IndexFunc(list, func(a struct{ Name, Status string }) bool { return a.Name == ns }); err != nil || i < 0 || list[i].Status != "running" {
		t.Errorf("list --json: %v, %s", err, out)
	}
	cmd := bottle(t, agentManifest, "exec", "kube", "--", "sh", "-c", `cat; echo "$TOKEN" >&2; exit 7`)
	cmd.Stdin = strings.NewReader("through the API\x00\n")
	if out, errs, code := output(t, cmd); out != "through the API\x00\n" || errs != secretValue+"\n" || code != 7 {
		t.Errorf("exec: %q, %q, exit code %d", out, errs, code)
	}
	if out, _, code := output(t, bottle(t, agentManifest, "logs", ns)); code != 0 || !strings.Contains(out, "cloned-") {
		t.Errorf("logs: exit code %d, %s", code, out)
	}
	if out, _, _ := output(t, bottle(t, agentManifest, "egress", ns)); !strings.Contains(out, "git.allowed.test:443") || !strings.Contains(out, "refused.test:443") {
		t.Errorf("egress: %s", out)
	}
	if out, _, _ := output(t, bottle(t, agentManifest, "egress", ns, "--denied")); strings.Contains(out, "git.allowed.test") || !strings.Contains(out, "refused.test:443") {
		t.Errorf("egress --denied: %s", out)
	}

	// Work comes back by git's own transport, over exec.
	clone := bottle(t, agentManifest)
	clone.Path, clone.Args = gitProgram(t), []string{"git", "-c", "protocol.ext.allow=always", "-c", "transfer.fsckObjects=true", "clone", "-q", "ext::bottle kube exec " + ns + " -- git upload-pack /workspace/work", "work"}
	if _, errs, code := output(t, clone); code != 0 {
		t.Errorf("clone over exec: exit code %d, %s", code, errs)
	}
	if out, err := exec.Command("git", "-C", filepath.Join(clone.Dir, "work"), "log", "-1", "--format=%an").CombinedOutput(); err != nil || len(out) < 2 {
		t.Errorf("the commits of the clone: %v, %s", err, out)
	}

	// A namespace that is not bottle's is never removed.
	for _, other := range []string{"default", "kube-system"} {
		if _, errs, code := output(t, bottle(t, agentManifest, "rm", other)); code == 0 {
			t.Errorf("rm %s: %s", other, errs)
		}
		if phase := kubectl(t, "", "get", "namespace", other, "-o", "jsonpath={.status.phase}"); phase != "Active" {
			t.Errorf("after rm, %s is %s", other, phase)
		}
	}
	if _, errs, code := output(t, bottle(t, agentManifest, "rm", "kube")); code != 0 {
		t.Errorf("rm: exit code %d, %s", code, errs)
	}
	kubectl(t, "", "wait", "--for", "delete", "--timeout", "90s", "namespace/"+ns)
	if _, errs, code := output(t, bottle(t, agentManifest, "exec", ns, "true")); code == 0 || !strings.Contains(errs, "no such agent") {
		t.Errorf("exec after rm: exit code %d, %s", code, errs)
	}
}

func gitProgram(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// typed is an agent that waits for a line.
var typed = strings.Replace(agentManifest, "\n    command: [",
	"\n    command: [bash, -c, 'until read -t 1 line; do echo waiting; done; stty size; echo \"got $line\"; exit 5']\n    #", 1)

// session is bottle kube on a terminal.
type session struct {
	t        *testing.T
	cmd      *exec.Cmd
	terminal *os.File
	out      bytes.Buffer
}

func onTerminal(t *testing.T, cmd *exec.Cmd) *session {
	t.Helper()
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
	if err != nil {
		t.Fatal(err)
	}
	end := time.AfterFunc(90*time.Second, func() { _ = cmd.Process.Kill() })
	t.Cleanup(func() {
		end.Stop()
		_ = terminal.Close()
	})
	return &session{t: t, cmd: cmd, terminal: terminal}
}

// expect reads until the terminal shows a text.
func (s *session) expect(want string) {
	s.t.Helper()
	buf := make([]byte, 4096)
	for !strings.Contains(s.out.String(), want) {
		n, err := s.terminal.Read(buf)
		s.out.Write(buf[:n])
		if err != nil {
			s.t.Fatalf("%v before %q: %s", err, want, &s.out)
		}
	}
}

func (s *session) send(keys string) {
	s.t.Helper()
	if _, err := io.WriteString(s.terminal, keys); err != nil {
		s.t.Fatal(err)
	}
}

// end returns the exit code.
func (s *session) end() int {
	s.t.Helper()
	_, _ = io.Copy(&s.out, s.terminal) // ends with EIO
	err := s.cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return 0
}

// TestKubeTerminal leaves the session of an agent, rejoins it and types into it. Its exit code
// is bottle's.
func TestKubeTerminal(t *testing.T) {
	t.Parallel()
	const ns = "bottle-typed"
	t.Cleanup(func() { _, _ = tryKubectl("", "delete", "namespace", ns, "--wait=false", "--ignore-not-found") })
	run := onTerminal(t, bottle(t, typed, append([]string{"run", "impl", "--namespace", ns}, ownImage...)...))
	run.expect("waiting")
	run.send("\x10\x11")
	if code := run.end(); code != 0 || !strings.Contains(run.out.String(), "runs on the cluster") {
		t.Errorf("after the detach keys: exit code %d, %s", code, &run.out)
	}
	attach := onTerminal(t, bottle(t, typed, "attach", ns))
	attach.expect("waiting")
	attach.send("hello\r")
	if code := attach.end(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	for _, want := range []string{"got hello", "33 101"} {
		if !strings.Contains(attach.out.String(), want) {
			t.Errorf("the session does not print %q: %s", want, &attach.out)
		}
	}
	again := onTerminal(t, bottle(t, typed, "attach", ns))
	if code := again.end(); code != 125 || !strings.Contains(again.out.String(), "exit code 5") {
		t.Errorf("attach to a session that has ended: exit code %d, %s", code, &again.out)
	}
}

// TestKubeEnd: an agent is removed at the end of the session that started it, also if the
// agent is faster than the connection.
func TestKubeEnd(t *testing.T) {
	t.Parallel()
	for name, command := range map[string]string{"slow": `until read -t 1 line; do echo waiting; done; exit 3`, "fast": `echo waiting; exit 3`} {
		t.Run(name, func(t *testing.T) {
			ns := "bottle-" + name
			t.Cleanup(func() { _, _ = tryKubectl("", "delete", "namespace", ns, "--wait=false", "--ignore-not-found") })
			manifest := strings.Replace(agentManifest, "\n    command: [", "\n    command: [bash, -c, '"+command+"']\n    #", 1)
			s := onTerminal(t, bottle(t, manifest, append([]string{"run", "impl", "--namespace", ns}, ownImage...)...))
			s.expect("waiting")
			if name == "slow" {
				s.send("\r")
			}
			if code := s.end(); code != 3 {
				t.Errorf("exit code %d, want 3: %s", code, &s.out)
			}
			kubectl(t, "", "wait", "--for", "delete", "--timeout", "90s", "namespace/"+ns)
		})
	}
}
