package bottle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

// Status describes one bottle in `bottle list`.
type Status struct {
	Name    string    `json:"name"`
	Owner   int       `json:"owner"` // user ID; 0: root
	Agent   string    `json:"agent"`
	Image   string    `json:"image"`
	Runtime string    `json:"runtime"`
	Proxy   string    `json:"proxy"`
	Status  string    `json:"status"`
	Created time.Time `json:"created"`
	// Work is what the bottle's workspace contains; nil: it has none.
	Work *Work `json:"work,omitempty"`
}

// Work describes the work of an agent in a workspace.
type Work struct {
	Used int64 `json:"used_bytes"` // disk space on the host
	// Unfetched means that some of it may not have been fetched.
	Unfetched bool `json:"unfetched"`
	// Summary counts it; nil: not known. That of a running bottle is only known after
	// SummarizeAll.
	Summary *agentwork.Summary `json:"summary,omitempty"`
}

// statusKept is the status of a workspace whose bottle was removed.
const statusKept = "kept"

// statusLost is the status of a bottle that ended with the host: its files on tmpfs are
// gone, and containerd has its record and no task.
const statusLost = "lost when the host restarted"

// statusSuspended is the status of a bottle whose memory is in an image.
const statusSuspended = "suspended"

// List returns the running and suspended bottles, or with all every bottle that containerd knows and
// the work of removed ones, newest first.
func (e *Engine) List(ctx context.Context, all bool) ([]Status, error) {
	containers := e.rt.OverviewOfTasks
	if all {
		containers = e.rt.Overview
	}
	return e.listWith(ctx, all, containers)
}

// listChecked is List with all labels from containerd, for whatever decides by them. With
// many bottles it takes longer.
func (e *Engine) listChecked(ctx context.Context, all bool) ([]Status, error) {
	return e.listWith(ctx, all, e.rt.List)
}

// containerList is runtime.Client.List, or what stands for it.
type containerList func(context.Context) ([]runtime.Container, error)

func (e *Engine) listWith(ctx context.Context, all bool, containers containerList) ([]Status, error) {
	list, err := e.listBottles(ctx, all, containers)
	if err != nil {
		return nil, err
	}
	kept, err := e.work.WorkspacesOf(states(list))
	if err != nil {
		return nil, err
	}
	for _, k := range kept {
		i := slices.IndexFunc(list, func(s Status) bool { return s.Name == k.Name })
		if i < 0 && !all {
			continue
		}
		if i < 0 {
			i, list = len(list), append(list, Status{
				Name: k.Name, Owner: names.Owner(k.Name), Agent: k.Agent, Image: k.Image, Runtime: k.Runtime, Status: statusKept, Created: k.Created,
			})
		}
		list[i].Work = &Work{Used: k.Used, Unfetched: k.Unfetched}
		if s := k.Summary; s != nil {
			list[i].Work.Summary = &agentwork.Summary{Commits: s.Commits, Files: s.Files}
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Created.After(list[j].Created) })
	return list, nil
}

// listBottles returns the running and suspended bottles, or with all every bottle that containerd
// knows, newest first.
func (e *Engine) listBottles(ctx context.Context, all bool, containers containerList) ([]Status, error) {
	found, err := containers(ctx)
	if err != nil {
		return nil, err
	}
	proxies := map[string]string{}
	for _, c := range found {
		// Without either process the agent reaches nothing.
		name := c.Labels[runtime.LabelName]
		if known := proxies[name]; (c.Role == runtime.RoleProxy || c.Role == runtime.RoleFront) && (known == "" || known == "running") {
			proxies[name] = c.Status
		}
	}
	out := []Status{}
	for _, c := range found {
		// A suspended bottle has no task, but occupies memory.
		suspended := c.Status != "running" && e.rt.Suspended(c.ID)
		if c.Role != runtime.RoleAgent && c.Role != "" || !all && !c.Alive() && !suspended {
			continue
		}
		if _, own := names.Visible(c.ID, e.cfg.Owner); !own {
			continue
		}
		st := statusOf(c, proxies)
		if e.IsPrepared(c.ID) {
			if !all {
				continue
			}
			st.Status = strings.Replace(st.Status, "running", PreparedReady, 1)
		}
		if suspended {
			st.Status = statusSuspended
		}
		switch st.Status {
		case "none":
			if _, err := os.Lstat(e.dir(c.ID)); errors.Is(err, fs.ErrNotExist) {
				st.Status = statusLost
			} else if state, err := e.sessions.Recorded(c.ID); err == nil { // it was suspended, and then stopped
				st.Status = "stopped, " + state.Summary()
			}
		case "stopped":
			// Not recorded yet if nobody has watched a sandbox that was killed.
			if state, err := e.sessions.State(ctx, c.ID); err == nil {
				st.Status = "stopped, " + state.Summary()
			}
		}
		out = append(out, st)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Created.After(out[j].Created) })
	return out, nil
}

// states returns the state of each bottle's agent, by the bottle's name.
func states(list []Status) map[string]string {
	out := map[string]string{}
	for _, s := range list {
		out[s.Name] = s.Status
	}
	return out
}

func statusOf(c runtime.Container, proxies map[string]string) Status {
	s := Status{
		Name: c.ID, Owner: names.Owner(c.ID), Agent: c.Labels[runtime.LabelAgent], Image: c.Labels[runtime.LabelImage],
		Runtime: c.Labels[runtime.LabelRuntime], Proxy: c.Labels[runtime.LabelProxy],
		Status: c.Status, Created: c.Created,
	}
	if p := proxies[c.ID]; s.Status == "running" && p != "running" {
		if p == "" || p == "none" {
			p = "missing"
		}
		s.Status = "running, proxy is " + p
	}
	return s
}

// ErrNoBottle is wrapped if no bottle has the requested name.
var ErrNoBottle = errors.New("no such bottle")

// Resolve returns the name of the bottle that a user specified, with or without the
// prefix of all bottles' names. It also finds incompletely removed bottles.
// A prepared bottle is refused: nothing is done with it until a run has claimed it.
func (e *Engine) Resolve(ctx context.Context, name string) (string, error) {
	l, err := e.Find(ctx, name)
	if err == nil && e.IsPrepared(l.Name) {
		return "", &hint.Error{Err: fmt.Errorf("%s is prepared and not in use", name), Hint: "bottle run uses it; bottle pool drain removes it"}
	}
	return l.Name, err
}

// Find is Resolve for a removal. It costs the same for any number of bottles, unless no
// bottle of the name has a directory on tmpfs. FindLeftovers describes what belongs to it.
func (e *Engine) Find(ctx context.Context, name string) (Leftovers, error) {
	// A user of sudo finds only what has an identifier of theirs.
	wanted := []string{names.ID(name, e.cfg.Owner), names.ID(names.Prefix+name, e.cfg.Owner)}
	if l, ok, err := e.teardown.FindFirst(ctx, wanted); ok || err != nil {
		return l, err
	}
	for _, want := range wanted {
		if _, err := e.workspaces.Load(want); err == nil {
			return Leftovers{Name: want}, nil // of which only the work is left
		}
	}
	return Leftovers{}, &hint.Error{Err: fmt.Errorf("%w: %s", ErrNoBottle, name), Hint: "bottle list -a shows all bottles"}
}

// Running reports whether the bottle's agent is running.
func (e *Engine) Running(ctx context.Context, name string) (bool, error) {
	return e.rt.Alive(ctx, name)
}

// SummarizeAll counts the work of running bottles concurrently. What cannot be counted
// within the limits remains unknown.
func (e *Engine) SummarizeAll(ctx context.Context, list []Status, o agentwork.Options) {
	var wg sync.WaitGroup
	for _, s := range list {
		if s.Work == nil || !runtime.Alive(firstWord(s.Status)) {
			continue
		}
		wg.Go(func() {
			if sum, err := e.work.Summarize(ctx, s.Name, o); err == nil {
				s.Work.Summary = &sum
			}
		})
	}
	wg.Wait()
}

// firstWord returns a state without its details.
func firstWord(status string) string {
	word, _, _ := strings.Cut(status, ",")
	return word
}

// Usage is what a bottle's agent uses.
type Usage = runtime.Usage

// Usage measures what the agent of a running bottle uses.
func (e *Engine) Usage(ctx context.Context, name string) (Usage, error) { return e.rt.Usage(ctx, name) }

// summary is embedded under this name, so that Details.Status is the state.
type summary = Status

// Details describes one bottle in `bottle inspect`. It contains no secrets.
type Details struct {
	summary
	Manifest  string         `json:"manifest"` // the file that the policy came from
	Bottle    string         `json:"bottle"`   // the bottle's name in that manifest
	PID       uint32         `json:"pid"`      // of the sandbox on the host; 0: not running
	ProxyPID  uint32         `json:"proxy_pid"`
	Watcher   int            `json:"watcher"` // process that watches a detached bottle; 0: none
	Container runtime.Facts  `json:"container"`
	Egress    egress.Entries `json:"egress"` // the policy in force
	Learn     bool           `json:"learn"`  // the policy blocks nothing public
	Network   Namespaces     `json:"network"`
	Dir       string         `json:"dir"`       // on tmpfs
	StateDir  string         `json:"state_dir"` // on disk
	Log       string         `json:"egress_log"`
}

// Namespaces are the paths of a bottle's network namespaces.
type Namespaces struct {
	Agent string `json:"agent"`
	Proxy string `json:"proxy"`
}

// Inspect describes a bottle that containerd knows. The error wraps ErrNoBottle if there
// is none.
func (e *Engine) Inspect(ctx context.Context, name string) (Details, error) {
	list, err := e.List(ctx, true)
	if err != nil {
		return Details{}, err
	}
	i := slices.IndexFunc(list, func(s Status) bool { return s.Name == name })
	if i < 0 {
		return Details{}, fmt.Errorf("%w: %s", ErrNoBottle, name)
	}
	d := Details{
		summary: list[i], Dir: e.dir(name), StateDir: e.stateDir(name), Log: e.proxies.LogFile(name),
		Network: Namespaces{Agent: netns.AgentPath(e.dir(name)), Proxy: netns.ProxyPath(e.dir(name))},
	}
	if d.Container, err = e.rt.Facts(ctx, name); err != nil {
		return Details{}, err
	}
	d.PID, d.ProxyPID = e.rt.PID(ctx, name), e.rt.PID(ctx, names.Proxy(name))
	d.Watcher = e.sessions.Watcher(name)
	policy, err := e.proxies.Load(name)
	if err != nil {
		return Details{}, err
	}
	d.Egress, d.Learn, d.Manifest, d.Bottle = policy.Entries, policy.Learn, policy.Manifest, policy.Bottle
	return d, nil
}
