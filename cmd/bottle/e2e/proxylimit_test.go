package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// heldHeads has an agent hold requests in the proxy's memory until the proxy ends them.
const heldHeads = `exec 2>/dev/null
line=$(head -c 60000 /dev/zero | tr '\0' x)
for i in $(seq 300); do exec {fd}<>/dev/tcp/10.77.0.1/8888 && printf 'GET http://allowed.test/ HTTP/1.1\r\nX: %s' "$line" >&$fd; done
read -r -t 20 <&$fd; true`

// TestProxyOutOfMemory has the proxy end by its own memory limit, which the test lowers
// to little more than what the proxy uses: within the default an agent cannot make it.
// The log and the session's output name the limit in the manifest's words.
func TestProxyOutOfMemory(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	l := u.start("claude-bottle-proxyoom")
	first := proxyPID(t, l.name)
	if first == 0 {
		t.Fatal("there is no proxy")
	}
	// Before anything is requested, the proxy uses little.
	lowerMemory(t, proxyMemoryFile(t, first))
	flood := u.exec(l.name, "bash", "-c", heldHeads)
	awaitNewProxy(t, l.name, first)
	// The control: the new proxy, within its own limit, does not end.
	second := proxyPID(t, l.name)
	u.exec(l.name, "bash", "-c", heldHeads)
	if now := proxyPID(t, l.name); now != second {
		t.Errorf("the proxy ended within its limit: process %d, then %d", second, now)
	}
	r := u.bottle("egress", l.name)
	const want = "limit of 256 MiB of memory reached (proxy.memory in the manifest raises it)"
	if !strings.Contains(r.stdout, want) {
		t.Errorf("the log lacks %q:\n%s%s", want, r.stdout, r.stderr)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
	// The session that restarts the proxy reports it: that of run, or of exec.
	errs := l.errs.String() + flood.stderr
	for _, want := range []string{
		"The egress proxy of " + l.name + " ended and was restarted",
		"The egress proxy of " + l.name + " reached its limit of 256 MiB of memory.\nhint: raise proxy.memory in the manifest\n",
	} {
		if !strings.Contains(errs, want) {
			t.Errorf("standard error lacks %q:\n%s", want, errs)
		}
	}
}

// awaitNewProxy waits for a proxy other than the process first.
func awaitNewProxy(t *testing.T, name string, first int) {
	t.Helper()
	limit := time.Now().Add(longest)
	for now := first; now == first || now == 0; now = proxyPID(t, name) {
		if time.Now().After(limit) {
			t.Fatal("there is no new proxy")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// proxyMemoryFile returns the file of the memory limit of a process's cgroup, under cgroup
// version 1 or 2.
func proxyMemoryFile(t *testing.T, pid int) string {
	t.Helper()
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(groups)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case fields[1] == "memory":
			return filepath.Join("/sys/fs/cgroup/memory", fields[2], "memory.limit_in_bytes")
		case fields[0] == "0":
			if file := filepath.Join("/sys/fs/cgroup", fields[2], "memory.max"); exists(file) {
				return file
			}
		}
	}
	t.Fatalf("no memory cgroup in\n%s", groups)
	return ""
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// lowerMemory lowers a memory limit to what is in use and 4 MiB more.
func lowerMemory(t *testing.T, file string) {
	t.Helper()
	used, err := os.ReadFile(filepath.Join(filepath.Dir(file), "memory.usage_in_bytes"))
	if err != nil {
		used, err = os.ReadFile(filepath.Join(filepath.Dir(file), "memory.current"))
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(used)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(strconv.FormatInt(n+4<<20, 10)), 0); err != nil {
		t.Fatal(err)
	}
}
