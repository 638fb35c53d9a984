package bottle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/runtime"
)

// Status describes one bottle in `bottle list`.
type Status struct {
	Name    string    `json:"name"`
	Agent   string    `json:"agent"`
	Image   string    `json:"image"`
	Runtime string    `json:"runtime"`
	Proxy   string    `json:"proxy"`
	Status  string    `json:"status"`
	Created time.Time `json:"created"`
}

// alive are the states in which an agent is running, or may be.
var alive = []string{"running", "paused", "unknown"}

// List returns the running bottles, or with all every bottle that containerd knows,
// newest first.
func (e *Engine) List(ctx context.Context, all bool) ([]Status, error) {
	found, err := e.rt.List(ctx, names.Prefix)
	if err != nil {
		return nil, err
	}
	proxies := map[string]string{}
	for _, c := range found {
		if c.Role == runtime.RoleProxy {
			proxies[c.Labels[runtime.LabelName]] = c.Status
		}
	}
	out := []Status{}
	for _, c := range found {
		if c.Role == runtime.RoleProxy || !all && !slices.Contains(alive, c.Status) {
			continue
		}
		out = append(out, statusOf(c, proxies))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Created.After(out[j].Created) })
	return out, nil
}

func statusOf(c runtime.Container, proxies map[string]string) Status {
	s := Status{
		Name: c.ID, Agent: c.Labels[runtime.LabelAgent], Image: c.Labels[runtime.LabelImage],
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
func (e *Engine) Resolve(ctx context.Context, name string) (string, error) {
	l, err := e.Find(ctx, name)
	return l.Name, err
}

// Find is Resolve with everything that belongs to the bottle.
func (e *Engine) Find(ctx context.Context, name string) (Leftovers, error) {
	leftovers, err := e.findLeftovers(ctx, 0)
	if err != nil {
		return Leftovers{}, err
	}
	for _, want := range []string{name, names.Prefix + name} {
		for _, l := range leftovers {
			if l.Name == want {
				return l, nil
			}
		}
	}
	return Leftovers{}, &hint.Error{Err: fmt.Errorf("%w: %s", ErrNoBottle, name), Hint: "bottle list shows the running bottles"}
}

// Running reports whether the bottle's agent is running.
func (e *Engine) Running(ctx context.Context, name string) (bool, error) {
	list, err := e.List(ctx, false)
	if err != nil {
		return false, err
	}
	for _, s := range list {
		if s.Name == name {
			return !strings.HasPrefix(s.Status, "stopped"), nil
		}
	}
	return false, nil
}
