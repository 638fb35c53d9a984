package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// manyTime bounds the life of each of many bottles, which last until all have been used.
const manyTime = 20 * time.Minute

// TestManyBottles launches one agent 20 times at the same moment, and in the complete run
// 30 more while those run: each gets a name of its own, all are listed, one bottle's policy
// is not another's, and cleanup removes all of them.
func TestManyBottles(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", strings.Replace(manifest, "egress:", "limits: {memory: 128MiB}\n    egress:", 1))
	n := 20
	if allFaults() {
		n = 50
	}
	t.Cleanup(func() { u.bottle("cleanup", "--yes") })
	start := time.Now()
	var sessions sync.WaitGroup
	codes := make([]int, n)
	launch := func(i int) {
		cmd := u.commandFor(manyTime, "run", "sh", "--proxy", "builtin", "--yes", "--", "-c", "sleep 1000")
		_ = cmd.Run() // the exit code is checked
		codes[i] = cmd.ProcessState.ExitCode()
	}
	for i := range 20 {
		sessions.Go(func() { launch(i) })
	}
	names := u.awaitRunning(20)
	t.Logf("20 bottles after %s", time.Since(start).Round(time.Second))
	for i := 20; i < n; i += 5 { // more at a time would only wait for the processors
		for j := i; j < i+5; j++ {
			sessions.Go(func() { launch(j) })
		}
		names = u.awaitRunning(i + 5)
	}
	t.Logf("%d bottles after %s", n, time.Since(start).Round(time.Second))
	u.checkEach(names)
	if r := u.bottle("cleanup", "--yes"); r.code != 0 {
		t.Errorf("cleanup: exit %d: %s", r.code, r.stderr)
	}
	sessions.Wait()
	if want := slices.Repeat([]int{137}, n); !slices.Equal(codes, want) {
		t.Errorf("exit codes %v; want 137", codes)
	}
	u.bottle("list", "-a", "--json").want(t, 0, "[]\n")
}

// awaitRunning waits until n bottles run, and returns their names.
func (u user) awaitRunning(n int) []string {
	u.t.Helper()
	for end := time.Now().Add(longest); ; {
		var list []struct{ Name, Status string }
		if err := json.Unmarshal([]byte(u.bottle("list", "--json").stdout), &list); err != nil {
			u.t.Fatal(err)
		}
		names := []string{}
		for _, b := range list {
			if b.Status == "running" && !slices.Contains(names, b.Name) {
				names = append(names, b.Name)
			}
		}
		if len(names) == n {
			return names
		}
		if time.Now().After(end) {
			u.t.Fatalf("%d bottles run; want %d: %v", len(names), n, list)
		}
	}
}

// checkEach uses every bottle: it has its own name, its own files, and its own policy.
func (u user) checkEach(names []string) {
	u.t.Helper()
	if r := u.bottle("allow", names[0], "refused.test"); r.code != 0 {
		u.t.Errorf("allow: exit %d: %s", r.code, r.stderr)
	}
	const script = `hostname; ls /tmp/mine 2>/dev/null; echo >/tmp/mine
curl -sS -m 20 -o /dev/null https://refused.test/ 2>/dev/null && echo reached || echo refused`
	var g errgroup.Group
	g.SetLimit(3)
	for i, name := range names {
		g.Go(func() error {
			want := name + "\nrefused\n"
			if i == 0 {
				want = strings.Replace(want, "refused", "reached", 1)
			}
			r := u.exec(name, "sh", "-c", script)
			if r.code != 0 || r.stdout != want {
				return fmt.Errorf("%s: exit %d, %q; want %q: %s", name, r.code, r.stdout, want, r.stderr)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		u.t.Error(err)
	}
}
