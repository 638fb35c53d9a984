package bottle

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
)

var errInjected = errors.New("injected")

// launchSteps runs one launch and returns its steps.
func launchSteps(t *testing.T, e *Engine, plan *plan.Plan) []string {
	t.Helper()
	var mu sync.Mutex
	var steps []string
	defer setHooks(e, testHooks{step: func(step string, done bool) error {
		mu.Lock()
		defer mu.Unlock()
		if done {
			steps = append(steps, step)
		}
		return nil
	}})()
	b, err := e.Launch(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	slices.Sort(steps)
	return steps
}

// TestFaults fails each step of a launch, before and after it runs: nothing may be left,
// and the error is the injected one.
func TestFaults(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	spec := testSpec(t, strings.Replace(simpleManifest, "LOG_LEVEL: debug", "LOG_LEVEL: debug, TOKEN: {inject: [allowed.test]}", 1))
	spec.Caller.Getenv = func(name string) (string, bool) {
		if name == "TOKEN" {
			return "a secret of some length", true
		}
		return "", false
	}
	plan := prepare(t, e, spec)
	steps := launchSteps(t, e, plan)
	if len(steps) < 12 {
		t.Fatalf("only %d steps: %v", len(steps), steps)
	}
	for _, step := range steps {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/after=%v", step, after), func(t *testing.T) {
				leakcheck.Check(t)
				defer setHooks(e, testHooks{step: func(s string, done bool) error {
					if s == step && done == after {
						return errInjected
					}
					return nil
				}})()
				b, err := e.Launch(t.Context(), plan)
				if !errors.Is(err, errInjected) || b != nil {
					t.Fatalf("Launch = %v, %v; want the injected error", b, err)
				}
			})
		}
	}
}

// TestCancel cancels a launch in each step.
func TestCancel(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	plan := prepare(t, e, testSpec(t, simpleManifest))
	for _, step := range []string{"create namespaces", "attach egress network", "prepare root file system", "create agent", "start proxy", "start agent"} {
		t.Run(step, func(t *testing.T) {
			leakcheck.Check(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			defer setHooks(e, testHooks{step: func(s string, done bool) error {
				if s == step && !done {
					cancel()
				}
				return nil
			}})()
			if _, err := e.Launch(ctx, plan); !errors.Is(err, context.Canceled) {
				t.Fatalf("Launch = %v; want context.Canceled", err)
			}
		})
	}
}

// TestLostRace launches two bottles with the name of one plan.
func TestLostRace(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	plan := prepare(t, e, testSpec(t, simpleManifest))
	first, err := e.Launch(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, first)
	second, err := e.Launch(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, second)
	if first.Name != "claude-bottle-it" || second.Name != "claude-bottle-it-2" {
		t.Errorf("got names %s and %s", first.Name, second.Name)
	}
	pinned := *plan
	pinned.Pinned = true
	if b, err := e.Launch(t.Context(), &pinned); !errors.Is(err, runtime.ErrTaken) {
		t.Errorf("launch with a pinned, taken name: %v, %v", b, err)
	}
	// The failed launch has not affected the bottle that has the name.
	if out, code := output(t, e, first.Name, "echo", "alive"); code != 0 || out != "alive\n" {
		t.Errorf("first bottle: %q, exit %d", out, code)
	}
}

// TestNameOfForeignContainer lets containerd itself refuse the name: another program has
// created a container of that name after the plan was made.
func TestNameOfForeignContainer(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	plan := prepare(t, e, testSpec(t, simpleManifest))
	foreign := makeContainer(t, plan.Name)
	b, err := e.Launch(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, b)
	if b.Name != "claude-bottle-it-2" {
		t.Errorf("got name %s", b.Name)
	}
	foreign.mustExist(t)
}

// TestConcurrentLaunches launches several bottles of one plan concurrently.
func TestConcurrentLaunches(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	plan := prepare(t, e, testSpec(t, simpleManifest))
	var wg sync.WaitGroup
	bottles := make([]*Bottle, 4)
	for i := range bottles {
		wg.Go(func() {
			b, err := e.Launch(t.Context(), plan)
			if err != nil {
				t.Error(err)
				return
			}
			bottles[i] = b
		})
	}
	wg.Wait()
	var names []string
	for _, b := range bottles {
		if b != nil {
			names = append(names, b.Name)
			wg.Go(func() { remove(t, b) })
		}
	}
	wg.Wait()
	slices.Sort(names)
	want := "claude-bottle-it claude-bottle-it-2 claude-bottle-it-3 claude-bottle-it-4"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got names %s; want %s", got, want)
	}
}

func remove(t *testing.T, b *Bottle) {
	t.Helper()
	if err := b.Remove(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// TestSecretsReachTheAgent verifies that a secret reaches the agent and is not in the
// container's spec.
func TestSecretsReachTheAgent(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	s := testSpec(t, strings.Replace(simpleManifest, "LOG_LEVEL: debug", "LOG_LEVEL: debug, TOKEN: {from: CALLERS}", 1))
	const value = "line one\nline \"two\" = ünïcode $HOME"
	s.Caller.Getenv = func(name string) (string, bool) {
		if name == "CALLERS" {
			return value, true
		}
		return "", false
	}
	plan := prepare(t, e, s)
	b, err := e.Launch(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, b)
	out, code := output(t, e, b.Name, "sh", "-c", `printf %s "$TOKEN|$LOG_LEVEL"`)
	if code != 0 || out != value+"|debug" {
		t.Errorf("the agent sees %q, exit %d", out, code)
	}
	info := ctr(t, "containers", "info", b.Name)
	if !strings.Contains(info, "LOG_LEVEL=debug") {
		t.Error("invalid test: the search does not find the literal value")
	}
	if strings.Contains(info, "line one") {
		t.Error("the container's spec contains the secret")
	}
}

// TestMismatchStopsLaunch changes the network after it was created and before it is
// verified: the launch fails, no code of the agent has run, and nothing is left.
func TestMismatchStopsLaunch(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	plan := prepare(t, e, testSpec(t, simpleManifest))
	dir := e.dir(plan.Name)
	agent, proxy, host := netns.AgentPath(dir), netns.ProxyPath(dir), "/proc/self/ns/net"
	for _, tt := range []struct{ step, ns, change, want string }{
		{"attach internal network", agent, "ip route add default via 10.77.0.1", "agent's namespace: unexpected route 0.0.0.0/0"},
		{"attach internal network", agent, "ip address add 10.210.9.9/16 dev eth0", "unexpected address eth0 10.210.9.9/16"},
		{"attach internal network", agent, "echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "eth0/disable_ipv6 is 0"},
		{"attach internal network", agent, "ip link add extra0 type bridge && ip link set extra0 up", "unexpected link extra0"},
		{"attach egress network", proxy, "echo 1 >/proc/sys/net/ipv4/ip_forward", "proxy's namespace: ipv4/ip_forward is 1"},
		{"attach egress network", proxy, "nft flush ruleset", "missing nftables chain output"},
		{"attach egress network", proxy, "nft flush chain inet bottle output", "nftables chain output has 0 rules"},
		{"attach egress network", host, "nft delete table inet bottle", "missing nftables chain forward"},
		{"attach egress network", host, "for p in /sys/class/net/bottle0/brif/*; do bridge link set dev ${p##*/} isolated off; done", "not isolated"},
	} {
		t.Run(tt.change, func(t *testing.T) {
			leakcheck.Check(t)
			var mu sync.Mutex
			var started []string
			defer setHooks(e, testHooks{step: func(step string, done bool) error {
				if step == tt.step && done {
					if out, err := exec.Command("nsenter", "--net="+tt.ns, "sh", "-c", tt.change).CombinedOutput(); err != nil {
						return fmt.Errorf("change the network: %w: %s", err, out)
					}
				}
				mu.Lock()
				defer mu.Unlock()
				started = append(started, step)
				return nil
			}})()
			b, err := e.Launch(t.Context(), plan)
			if b != nil || !errors.Is(err, netns.ErrMismatch) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Launch = %v, %v; want a mismatch with %q", b, err, tt.want)
			}
			if slices.Contains(started, "start agent") || slices.Contains(started, "start proxy") {
				t.Errorf("tasks were started despite the mismatch: %v", started)
			}
		})
	}
	// The control: the same launch without change.
	b, err := e.Launch(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	remove(t, b)
}
