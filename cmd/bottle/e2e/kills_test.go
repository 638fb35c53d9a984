package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// faultsEnv selects the complete fault tests ("all"), which take an hour, instead of a
// part of them (`make test-faults`). faultSeedEnv repeats a run.
const (
	faultsEnv    = "BOTTLE_TEST_FAULTS"
	faultSeedEnv = "BOTTLE_TEST_SEED"
)

func allFaults() bool { return os.Getenv(faultsEnv) == "all" }

// faultRand returns a random source and logs its seed.
func faultRand(t *testing.T) *rand.Rand {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv(faultSeedEnv), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	t.Logf("seed: %s=%d", faultSeedEnv, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// TestRandomKills kills `bottle run` at random moments of its life and immediately runs
// `bottle cleanup`: that succeeds, and nothing is left on the host.
func TestRandomKills(t *testing.T) {
	leakcheck.Check(t)
	rounds := 15
	if allFaults() {
		rounds = 200
	}
	random := faultRand(t)
	u := newUser(t)
	life := timeLife(t, u)
	start := time.Now()
	for round := range rounds {
		// Longer than a life, so that the end is killed too.
		delay := time.Duration(random.Int64N(int64(life * 5 / 4)))
		runtime := []string{"runsc", "runsc", "runc"}[random.IntN(3)]
		ok := t.Run(fmt.Sprintf("%d %s %s", round, runtime, delay.Round(time.Millisecond)), func(t *testing.T) {
			leakcheck.Check(t)
			killAfter(t, u, delay, runtime)
			r := u.bottle("cleanup", "--yes")
			if r.code != 0 {
				t.Errorf("cleanup: exit %d: %s", r.code, r.stderr)
			}
		})
		if !ok {
			u.bottle("cleanup", "--yes") // for the following rounds
		}
	}
	t.Logf("%d kills in %s, a life takes %s", rounds, time.Since(start).Round(time.Second), life.Round(time.Millisecond))
}

// timeLife returns how long a bottle lives whose agent ends immediately.
func timeLife(t *testing.T, u user) time.Duration {
	t.Helper()
	labtest.Program(t) // build it first
	start := time.Now()
	u.run("sh", "-c", "true").want(t, 0, "")
	return time.Since(start)
}

// killAfter starts a bottle and kills `bottle run` after a delay. It does not wait for
// the kernel to end the process.
func killAfter(t *testing.T, u user, delay time.Duration, runtime string) {
	t.Helper()
	cmd := u.command("run", "sh", "--runtime", runtime, "--proxy", "builtin", "--yes", "--", "-c", "true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(delay)
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() }) // killed, or ended before
}

// TestLaunchingIsNoLeftover stops `bottle run` in its launch: cleanup and others do not
// touch the bottle while that process lives, and remove it when it was killed.
func TestLaunchingIsNoLeftover(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	const name = "claude-bottle-slow"
	cmd := u.command("run", "sh", "--proxy", "builtin", "--yes", "--name", name, "--", "-c", "echo out")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	awaitClaim(t, cmd, name)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r := u.bottle("cleanup", "--yes")
	if r.code != 0 || r.stderr != name+" is being launched by another process and stays.\n" {
		t.Errorf("cleanup: exit %d, %q", r.code, r.stderr)
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || out.String() != "out\n" {
		t.Errorf("the launched bottle: %v, %q, %s", err, &out, &errs)
	}
	if r := u.bottle("cleanup", "--yes"); r.code != 0 || strings.TrimSpace(r.stderr) != "There is nothing to remove." {
		t.Errorf("cleanup: exit %d, %q", r.code, r.stderr)
	}
}
