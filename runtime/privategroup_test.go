package runtime_test

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/runtime"
)

// privateGID is the primary group of an agent under runc.
const privateGID = 1879048192

// TestPrivateGroup: under runc, a user of the host that has the same user and group IDs
// as the agent cannot inspect the agent's processes.
func TestPrivateGroup(t *testing.T) {
	leakcheck.Check(t)
	c := connect(t)
	cfg := agentConfig(t, c, "claude-bottle-test-private", runtime.RuntimeRunc)
	cfg.Env = []string{"SECRET=hunter2"}
	rootfs, err := c.PrepareRootFS(ctx(t), cfg.Name, image, withFiles(runtime.PrivateGroup()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, c, cfg.Name) })
	task, err := c.CreateAgent(ctx(t), cfg, rootfs)
	if err != nil {
		t.Fatal(err)
	}
	must(t, task.Start(ctx(t)))
	pids := []int{task.PID()}
	out := newWatched()
	s, err := c.Exec(ctx(t), cfg.Name, runtime.SessionConfig{Args: []string{"bash", "-c", "echo ready; exec sleep 300"}, Stdout: out, Stderr: out})
	if err != nil {
		t.Fatal(err)
	}
	out.await(t, "ready")
	session, err := exec.Command("pgrep", "--exact", "--newest", "--uid", "1000", "sleep").Output()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(session), &pid); err != nil {
		t.Fatal(err)
	}
	for _, pid := range append(pids, pid) {
		for _, probe := range []string{"environ", "mem", "root", "fd/1", "cwd"} {
			file := fmt.Sprintf("/proc/%d/%s", pid, probe)
			if inspect(1000, 1000, file) {
				t.Errorf("the host's user 1000 can inspect %s", file)
			}
			// Control: only the group prevents it.
			if !inspect(1000, privateGID, file) {
				t.Errorf("control: cannot inspect %s with the agent's group", file)
			}
		}
	}
	must(t, s.Signal(ctx(t), syscall.SIGKILL))
	_, err = wait(t, s)
	must(t, err)
	want := fmt.Sprintf("bottle agent\n%d 1000\nagent:bottle\n", privateGID)
	if got := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{"bash", "-c", "groups; id -G; touch ~/x; stat -c %U:%G ~/x"}}); got.out != want || got.err != "" {
		t.Errorf("inside: %+v, want %q", got, want)
	}
	// The image's group still applies.
	if r := run(t, c, cfg.Name, runtime.SessionConfig{Args: []string{"bash", "-c", "touch ~/y && chgrp agent ~/y"}}); r.code != 0 {
		t.Errorf("change the group to the image's: %+v", r)
	}
}

// inspect reports whether a host user can access a file of /proc/PID.
func inspect(uid, gid uint32, file string) bool {
	cmd := exec.Command("sh", "-c", `case $1 in */environ) grep -q SECRET=hunter2 "$1";; */mem) : <"$1";; *) readlink "$1";; esac`, "sh", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	out, err := cmd.CombinedOutput()
	return err == nil && !strings.Contains(string(out), "denied")
}
