package bottle

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/session"
)

// The fault run lets one fault happen in each life of a bottle: every process that takes
// part is killed at every step of launch, session and removal (faultrun_kill_test.go), and
// every system call of bottle's that can be made to fail does so at several of its calls
// (faultrun_syscall_test.go). The steps are those that the code itself reports. Cleanup
// follows, after which nothing may be left. `make test` runs a part, `make test-faults`
// all of it.

const (
	faultsEnv    = "BOTTLE_TEST_FAULTS" // "all": the complete run
	faultSeedEnv = "BOTTLE_TEST_SEED"   // repeats a part
	faultOnlyEnv = "BOTTLE_TEST_CASES"  // a part of the names of cases, to repeat them
	faultEnv     = "BOTTLE_TEST_FAULT"  // makes the test program the victim of one fault

	partOfFaults = 24
	minFaults    = 400
	faultTimeout = 3 * time.Minute // of a case; longer is a hang
)

// fault is one case.
type fault struct {
	Victim  string // "bottle run", or what it has started
	Step    string
	Moment  string
	Runtime string
	// Delayed: cleanup runs some time after the fault, not immediately.
	Delayed bool
	After   time.Duration // of a fault during a step
	Dir     string        // contains the manifest
	Work    string        // a directory that the agent gets a copy of, and works in; may be empty
	// Prepared: the bottle is a prepared one. Ahead: the fault happens while it is prepared,
	// else when it is claimed and afterwards.
	Prepared, Ahead bool

	Syscall *syscallFault // instead of Victim, Step and Moment
}

func (f fault) String() string {
	what := f.Victim + "/" + f.Moment + " " + f.Step
	if f.Syscall != nil {
		what = f.Syscall.String()
	}
	when := "immediate"
	if f.Delayed {
		when = "delayed"
	}
	life := f.Runtime
	if f.Prepared {
		life += " prepared"
	}
	return strings.Join([]string{life, what, when}, "/")
}

// killedLine reports that a process was killed.
const killedLine = "killed"

// faultChild is `bottle run` with a fault: it launches and removes a bottle.
func faultChild(text string) int {
	var f fault
	if err := json.Unmarshal([]byte(text), &f); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx := context.Background()
	cfg := ConfigFromEnv(os.Getenv)
	cfg.Program = os.Getenv("BOTTLE_TEST_PROGRAM")
	e, err := Open(ctx, cfg)
	if err == nil {
		err = f.live(ctx, e)
	}
	restarts.Wait()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// sessionStep is the step between launch and removal.
const sessionStep = "session"

func (f fault) live(ctx context.Context, e *Engine) error {
	spec := plan.Spec{
		Agent: "it", Proxy: manifest.ProxyBuiltin, Runtime: f.Runtime,
		Caller: caller.Caller{
			Getenv:  func(string) (string, bool) { return "", false },
			WorkDir: f.Dir, Home: f.Dir, UID: os.Getuid(), GID: os.Getgid(),
		},
	}
	if f.Work != "" {
		spec.Cwd, spec.ManifestPath, spec.Caller.WorkDir = true, filepath.Join(f.Dir, "bottle.yaml"), f.Work
	}
	fault := func() {
		if f.kill() {
			fmt.Println(killedLine)
		}
	}
	if f.Prepared {
		if f.Ahead {
			e.hooks = f.trigger(fault)
		}
		ahead := spec
		ahead.NamesOnly = true
		p, err := plan.Prepare(ctx, ahead, e)
		if err == nil {
			err = e.FillPool(ctx, p, 1)
		}
		if err != nil {
			return err
		}
		e.hooks = testHooks{}
	}
	p, err := plan.Prepare(ctx, spec, e)
	if err != nil {
		return err
	}
	if f.Syscall != nil {
		if err := divertSyscalls(f.Syscall.numbers()); err != nil {
			return err
		}
	} else if !f.Ahead {
		e.hooks = f.trigger(fault)
	}
	b, err := e.Launch(ctx, p)
	if err != nil {
		return err
	}
	return errors.Join(f.session(ctx, e, b), b.Remove(ctx))
}

// session runs a command in the bottle, longer than a fault is delayed.
func (f fault) session(ctx context.Context, e *Engine, b *Bottle) error {
	at := func(bool) {}
	if e.hooks.step != nil {
		at = func(done bool) { _ = e.hooks.step(sessionStep, done) } // it returns none
	}
	at(false)
	command := []string{"sleep", "0.2"}
	if f.Work != "" {
		command = []string{"sh", "-c", "echo saved >new"}
	}
	s, err := e.Exec(ctx, b.Name, session.Config{Command: command})
	if err != nil {
		return err
	}
	_, err = s.Wait()
	at(true)
	return err
}

// faultScene is the bottle of the fault run: it has an ssh key, so that it has a relay.
func faultScene(t *testing.T, e *Engine) *plan.Plan {
	t.Helper()
	s := testSpec(t, "")
	key := filepath.Join(s.Caller.WorkDir, "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	hostKey := strings.Join(strings.Fields(string(public))[:2], " ")
	text := strings.Replace(simpleManifest, "    egress:",
		fmt.Sprintf("    ssh: [{Host: work, HostName: ssh.allowed.test, User: it, HostKey: %q, IdentityFile: %q}]\n    egress:", hostKey, key), 1)
	text = strings.Replace(text, "command: [sh]", "command: [sh], pool: 1", 1)
	if err := os.WriteFile(filepath.Join(s.Caller.WorkDir, "bottle.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return prepare(t, e, s)
}

// TestFaultRun lets a fault happen in each case, lets `bottle run` do what it does then,
// and runs cleanup: that succeeds, and nothing is left on the host.
func TestFaultRun(t *testing.T) {
	leakcheck.Check(t)
	seed, err := strconv.ParseUint(os.Getenv(faultSeedEnv), 10, 64)
	if err != nil {
		seed = rand.Uint64()
	}
	random := rand.New(rand.NewPCG(seed, 0))
	e := openEngine(t)
	p := faultScene(t, e)
	cases := append(killFaults(launchSteps(t, e, p), removalSteps(t, e, p), random), syscallFaults(t, filepath.Dir(p.Manifest), random)...)
	all := len(cases)
	if all < minFaults {
		t.Errorf("only %d cases", all)
	}
	random.Shuffle(all, func(i, j int) { cases[i], cases[j] = cases[j], cases[i] })
	complete := os.Getenv(faultsEnv) == "all"
	switch only := os.Getenv(faultOnlyEnv); {
	case only != "":
		cases = slices.DeleteFunc(cases, func(f fault) bool { return !strings.Contains(f.String(), only) })
	case !complete:
		cases = cases[:partOfFaults]
	}
	start := time.Now()
	happened := map[string]int{}
	var failed, hangs int
	for _, f := range cases {
		f.Dir = filepath.Dir(p.Manifest)
		if !t.Run(f.String(), func(t *testing.T) {
			leakcheck.Check(t)
			did, hung := f.happen(t, e)
			if did {
				happened[f.kind()]++
			}
			if hung {
				hangs++
			}
		}) {
			failed++
			_ = cleanUp(e) // for the following cases
		}
	}
	if complete {
		for _, f := range cases {
			if happened[f.kind()] == 0 {
				t.Errorf("no fault has happened of: %s", f.kind())
				happened[f.kind()] = -1 // reported
			}
		}
	}
	t.Logf("%d of %d cases, faults that happened: %v; %d cases failed, %d hangs, %s, seed: %s=%d", len(cases), all, happened, failed, hangs,
		time.Since(start).Round(time.Second), faultSeedEnv, seed)
}

// kind is what of a case must happen at least once in the complete run.
func (f fault) kind() string {
	if f.Syscall != nil {
		return "system call " + f.Syscall.Name
	}
	return f.Victim + " (" + f.Runtime + ")"
}

// happen runs one case and reports whether its fault has happened, and whether
// `bottle run` hung.
func (f fault) happen(t *testing.T, e *Engine) (happened, hung bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), faultTimeout)
	defer cancel()
	var calls *diversion
	cmd := f.command(ctx, t)
	if f.Syscall != nil {
		calls = divert(t, cmd, f.Syscall)
	}
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		hung = true
		t.Errorf("bottle run has not ended within %s: %s", faultTimeout, out)
	}
	t.Logf("bottle run: %v: %s", err, out)
	switch {
	case f.Syscall != nil:
		happened = calls.end().failed > 0
	case f.Victim == "bottle run":
		happened = err != nil && strings.Contains(err.Error(), "killed")
		if !happened && f.Moment != momentDuring { // a life may end before a fault during it
			t.Errorf("bottle run was not killed: %v: %s", err, out)
		}
	default:
		happened = strings.Contains(string(out), killedLine+"\n")
	}
	if f.Delayed {
		time.Sleep(2 * time.Second)
	}
	if f.Prepared {
		f.checkUnused(t, e)
	}
	if err := cleanUp(e); err != nil {
		t.Errorf("cleanup: %v", err)
	}
	return happened, hung
}

// checkUnused checks that no run would use a prepared bottle whose launch or claim was
// interrupted by a fault.
func (f fault) checkUnused(t *testing.T, e *Engine) {
	t.Helper()
	if f.Step == claimSteps[0] || f.Step == "record prepared" && f.Moment == momentDuring {
		return // the fault may have come before the claim, or after the launch
	}
	pool, err := e.Pool(t.Context())
	if err != nil {
		t.Error(err)
	}
	for _, b := range pool {
		if b.State == PreparedReady {
			t.Errorf("%s is %s", b.Name, b.State)
		}
	}
}

// command is `bottle run` with the fault.
func (f fault) command(ctx context.Context, t *testing.T) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) } // prints where it hangs
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), faultEnv+"="+string(text), "BOTTLE_TEST_PROGRAM="+labtest.Program(t))
	return cmd
}

// cleanUp is `bottle cleanup`.
func cleanUp(e *Engine) error {
	found, err := e.FindLeftovers(context.Background())
	return errors.Join(err, e.RemoveLeftovers(context.Background(), found))
}
