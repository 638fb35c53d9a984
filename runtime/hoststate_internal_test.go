package runtime

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"

	"github.com/bot-bottle/bottle/internal/hosttask"
)

// standIns starts a process with the command line of a container's shim, and as its child
// one with that of the container's first process, and returns the child's ID. Both end when
// the returned function is called.
func standIns(t *testing.T, c *Client, shimOf, root string) (pid int, end func()) {
	t.Helper()
	const script = `(exec -a runsc-sandbox bash -c 'read -r x' x --root="$1") <&0 & echo $!; wait`
	cmd := exec.Command("bash")
	cmd.Args = []string{"containerd-shim-runsc-v1", "-c", script, "x", root, "-namespace", c.cfg.Namespace, "-id", shimOf, "-address", c.cfg.Address}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			_ = in.Close()
			_ = cmd.Wait() // the exit code does not matter
			ended = true
		}
	}
	t.Cleanup(end)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatal(err)
	}
	// Its command line is that of the subshell until it has executed the program.
	for {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(string(text), "runsc-sandbox") {
			return pid, end
		}
	}
}

func putRecord(t *testing.T, path, format string, args ...any) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestHostState: a state is taken from a runtime's record only if the record is complete
// and the container's process and shim exist.
func TestHostState(t *testing.T) {
	const id, proxy = "claude-bottle-it", "claude-bottle-it" + ProxySuffix
	c := &Client{cfg: Config{RunDir: t.TempDir(), Namespace: "ns", Address: "/run/x/containerd.sock"}}
	runscDir := filepath.Join(c.Dir(id), "runsc", "ns")
	runsc := filepath.Join(runscDir, id+"_sandbox:"+id+".state")
	runc := filepath.Join(c.Dir(id), "proxy", "runc", "ns", proxy, "state.json")
	agent := containers.Container{ID: id, Runtime: containers.RuntimeInfo{Name: "/usr/bin/bottle"}}
	other := containers.Container{ID: proxy, Runtime: containers.RuntimeInfo{Name: shimRunc}}
	state := func(r containers.Container) string {
		s, ok := c.hostState(r)
		if !ok {
			return "ask"
		}
		return fmt.Sprint(s.status, " ", s.pid)
	}
	want := func(what string, r containers.Container, want string) {
		t.Helper()
		if got := state(r); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	want("without a record", agent, "ask")
	want("proxy without a record", other, "ask")

	pid, end := standIns(t, c, id, runscDir)
	for _, s := range []string{"created", "running", "paused"} {
		putRecord(t, runsc, `{"status": %q, "sandbox": {"pid": %d}}`, s, pid)
		want(s, agent, fmt.Sprintf("%s %d", s, pid))
	}
	for _, record := range []string{
		"", "{", "null", "[]", `{"status": "running"}`, `{"status": "running", "sandbox": null}`,
		fmt.Sprintf(`{"status": "stopped", "sandbox": {"pid": %d}}`, pid),
		fmt.Sprintf(`{"status": "running", "sandbox": {"pid": %d}`, pid), // being written
		`{"status": "running", "sandbox": {"pid": 1}}`,                   // another process
		fmt.Sprintf(`{"status": "running", "sandbox": {"pid": %d}}`, os.Getpid()),
		`{"status": "running", "sandbox": {"pid": -1}}`,
	} {
		putRecord(t, runsc, "%s", record)
		want("record "+record, agent, "ask")
	}
	putRecord(t, runsc, `{"status": "running", "sandbox": {"pid": %d}}`, pid)
	end()
	want("ended", agent, "ask")

	pid, _ = standIns(t, c, "another", runscDir)
	putRecord(t, runsc, `{"status": "running", "sandbox": {"pid": %d}}`, pid)
	want("without its shim", agent, "ask")

	pid, end = standIns(t, c, proxy, runscDir)
	p, ok := hosttask.ProcessOf(pid)
	if !ok {
		t.Fatal("no process")
	}
	putRecord(t, runc, `{"init_process_pid": %d, "init_process_start": %d}`, pid, p.Start)
	want("proxy", other, fmt.Sprintf("running %d", pid))
	fifo := filepath.Join(filepath.Dir(runc), "exec.fifo")
	putRecord(t, fifo, "")
	want("created proxy", other, fmt.Sprintf("created %d", pid))
	if err := os.Remove(fifo); err != nil {
		t.Fatal(err)
	}
	putRecord(t, runc, `{"init_process_pid": %d, "init_process_start": %d}`, pid, p.Start+1)
	want("proxy with the number of an earlier one", other, "ask")
	for _, record := range []string{"", "[", "{", "null", `{"init_process_pid": "x"}`, fmt.Sprintf(`{"init_process_pid": %d}`, pid), fmt.Sprintf(`{"init_process_start": %d}`, p.Start)} {
		putRecord(t, runc, "%s", record)
		want("proxy's record "+record, other, "ask")
	}
	putRecord(t, runc, `{"config": {"init_process_pid": 1}, "init_process_start": %d, "init_process_pid": %d, "x": []}`, p.Start, pid)
	want("proxy's record in another order", other, fmt.Sprintf("running %d", pid))
	putRecord(t, runc, `{"init_process_pid": %d, "init_process_start": %d}`, pid, p.Start)
	end()
	want("ended proxy", other, "ask")
}
