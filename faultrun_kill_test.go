package bottle

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
)

// A moment relates a fault to a step.
const (
	momentBefore = "before"
	momentDuring = "during"
	momentAfter  = "after"
)

// trigger calls do when a step has reached the fault's moment.
func (f fault) trigger(do func()) testHooks {
	return testHooks{
		step: func(step string, done bool) error {
			switch {
			case step != f.Step:
			case f.Moment == momentDuring && !done:
				f.later(do)
			case f.Moment == momentBefore && !done, f.Moment == momentAfter && done:
				do()
			}
			return nil
		},
		removal: func(point string) {
			switch {
			case f.Moment == momentBefore && point == f.Step, f.Moment == momentAfter && point == f.Step+removalDone:
				do()
			case f.Moment == momentDuring && point == f.Step:
				f.later(do)
			}
		},
	}
}

// restarts are the restarts of containerd in progress, which the process must not leave.
var restarts sync.WaitGroup

// later calls do some time after the begin of a step.
func (f fault) later(do func()) {
	if f.Victim == "containerd" {
		restarts.Add(1)
	}
	time.AfterFunc(f.After, func() {
		do()
		if f.Victim == "containerd" {
			restarts.Done()
		}
	})
}

// victims are the processes other than `bottle run`, with what identifies them: a part
// of their command lines. Under runsc the guest program and the relay are processes of the
// sandbox and not of the host.
var victims = map[string]*regexp.Regexp{
	"sandbox":    regexp.MustCompile(`^runsc-sandbox `),
	"gofer":      regexp.MustCompile(`^runsc-gofer `),
	"guest":      regexp.MustCompile(`^/\.bottle/init init`),
	"relay":      regexp.MustCompile(`^/\.bottle/init agent`),
	"agent shim": regexp.MustCompile(`(containerd-shim-run|bottle).* -id \S+it(-\d+)?( |$)`),
	"proxy shim": regexp.MustCompile(`containerd-shim-runc-v2 .*\.proxy( |$)`),
	"logger":     regexp.MustCompile(` proxy-log `),
	"proxy":      regexp.MustCompile(`^/bottle proxy --config`),
	"CNI plugin": regexp.MustCompile(`/(bridge|host-local|static|loopback)$`),
	"runtime":    regexp.MustCompile(`(^|/)(runsc|runc) .*(create|start|delete)`),
	"containerd": nil,
	"bottle run": nil,
}

// victimWait is for how long a fault during a step waits for its victim, which may not
// have been started yet.
const victimWait = 2 * time.Second

// kill kills the victim, if there is one now, and reports whether there was.
func (f fault) kill() bool {
	switch f.Victim {
	case "bottle run":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // ends this process
	case "containerd":
		for _, verb := range []string{"kill", "start"} {
			if out, err := exec.Command("scripts/lab.d/restart-containerd.sh", verb).CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "%s containerd: %v: %s\n", verb, err, out)
			}
		}
		return true
	}
	for end := time.Now().Add(victimWait); ; {
		if f.killOnce() {
			return true
		}
		if f.Moment != momentDuring || time.Now().After(end) {
			return false
		}
	}
}

func (f fault) killOnce() bool {
	if f.Runtime == runtime.RuntimeRunsc && (f.Victim == "guest" || f.Victim == "relay") {
		return f.killInside()
	}
	found := false
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is valid
	for _, line := range lines {
		text, _ := os.ReadFile(line) // it may have ended
		args := strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " "))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(line))); err == nil && victims[f.Victim].MatchString(args) {
			found = syscall.Kill(pid, syscall.SIGKILL) == nil || found // it may have ended
		}
	}
	return found
}

// killInside kills a process in the sandbox.
func (f fault) killInside() bool {
	name := names.Prefix + "it"
	args := []string{"tasks", "kill", "-s", "SIGKILL", name}
	if f.Victim == "relay" {
		// The bracket keeps the pattern from matching this command.
		args = []string{"tasks", "exec", "--exec-id", "fault", name, "sh", "-c",
			"for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline | grep -q '[i]nit agent' && kill -9 ${p#/proc/} && exit; done; exit 1"}
	}
	return exec.Command("ctr", args...).Run() == nil
}

// removalDone ends the name of the point at which a step of a removal has ended.
const removalDone = " done"

// removalSteps are the points that a removal reports.
func removalSteps(t *testing.T, e *Engine, p *plan.Plan) []string {
	t.Helper()
	b, err := e.Launch(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	points := make(chan string, 100)
	defer setHooks(e, testHooks{removal: func(point string) { points <- point }})()
	remove(t, b)
	close(points)
	var steps []string
	for p := range points {
		steps = append(steps, p)
	}
	slices.Sort(steps)
	return steps
}

// killFaults lists the cases in which a process is killed, for the steps of a launch and
// the points of a removal.
func killFaults(launch, points []string, random *rand.Rand) []fault {
	var out []fault
	add := func(victim, step string, moments ...string) {
		for _, m := range moments {
			for _, rt := range []string{runtime.RuntimeRunsc, runtime.RuntimeRunc} {
				if rt == runtime.RuntimeRunc && (victim == "sandbox" || victim == "gofer") {
					continue
				}
				for _, delayed := range []bool{false, true} {
					if delayed && victim != "bottle run" {
						continue // the victim's death is followed by bottle's own removal
					}
					after := time.Duration(random.Int64N(int64(100 * time.Millisecond)))
					out = append(out, fault{Victim: victim, Step: step, Moment: m, Runtime: rt, Delayed: delayed, After: after})
				}
			}
		}
	}
	steps := slices.Concat(launch, []string{sessionStep})
	for _, p := range points {
		if !strings.HasSuffix(p, removalDone) {
			steps = append(steps, p)
		}
	}
	for _, step := range steps {
		moments := []string{momentBefore, momentDuring}
		if !slices.Contains(points, step) || slices.Contains(points, step+removalDone) {
			moments = append(moments, momentAfter)
		}
		add("bottle run", step, moments...)
		add("containerd", step, momentBefore, momentDuring)
	}
	removal := []string{"remove", "removing", "remove agent", "remove proxy", "remove networks"}
	for _, victim := range []string{"sandbox", "gofer", "guest", "agent shim"} {
		add(victim, "create agent", momentDuring, momentAfter)
		add(victim, "start agent", momentDuring, momentAfter)
		add(victim, "start ssh agent", momentDuring, momentAfter)
		add(victim, sessionStep, momentDuring)
		for _, step := range removal {
			add(victim, step, momentBefore, momentDuring)
		}
	}
	add("relay", "start ssh agent", momentDuring, momentAfter)
	for _, victim := range []string{"proxy shim", "logger", "proxy"} {
		add(victim, "create proxy", momentDuring, momentAfter)
		add(victim, "start proxy", momentDuring, momentAfter)
	}
	for _, victim := range []string{"relay", "proxy shim", "logger", "proxy"} {
		add(victim, sessionStep, momentBefore, momentDuring)
		for _, step := range removal {
			add(victim, step, momentBefore)
		}
	}
	for _, step := range []string{"attach internal network", "attach egress network", "remove networks"} {
		add("CNI plugin", step, momentDuring)
	}
	out = append(out, preparedFaults(random)...)
	for _, step := range []string{"create agent", "create proxy", "start agent", "start proxy", "remove agent", "remove proxy"} {
		add("runtime", step, momentDuring)
	}
	return out
}

// claimSteps are the steps of a claim, in their order.
var claimSteps = []string{"claim prepared", "give policy", "give files", "find agent", "start ssh agent", "end claim"}

// preparedFaults lists the cases with a prepared bottle.
func preparedFaults(random *rand.Rand) []fault {
	var out []fault
	add := func(victim, step string, ahead bool, moments ...string) {
		for _, m := range moments {
			after := time.Duration(random.Int64N(int64(30 * time.Millisecond)))
			out = append(out, fault{
				Victim: victim, Step: step, Moment: m, Runtime: runtime.RuntimeRunsc, After: after, Prepared: true, Ahead: ahead, Delayed: random.IntN(2) > 0,
			})
		}
	}
	for _, step := range claimSteps {
		add("bottle run", step, false, momentBefore, momentDuring, momentAfter)
		add("containerd", step, false, momentBefore)
	}
	for _, victim := range []string{"sandbox", "proxy", "logger", "agent shim", "proxy shim"} {
		add(victim, claimSteps[0], false, momentBefore, momentAfter)
	}
	for _, step := range []string{"claim name", "create agent", "start proxy", "record prepared"} {
		add("bottle run", step, true, momentBefore, momentDuring, momentAfter)
	}
	return out
}
