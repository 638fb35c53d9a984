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

// Status is one bottle as `bottle list` shows it.
type Status struct {
	Name    string    `json:"name"`
	Agent   string    `json:"agent"`
	Image   string    `json:"image"`
	Runtime string    `json:"runtime"`
	Proxy   string    `json:"proxy"`
	Status  string    `json:"status"`
	Created time.Time `json:"created"`
}

// alive are the states of an agent that runs, or may.
var alive = []string{"running", "paused", "unknown"}

// List returns the bottles whose agent runs, or, with all, every bottle that
// containerd knows; sorted by age, the youngest first.
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
		s.Status = "running, proxy " + strings.TrimSpace("is "+orNone(p))
	}
	return s
}

func orNone(s string) string {
	if s == "" || s == "none" {
		return "gone"
	}
	return s
}

// ErrNoBottle is wrapped when no bottle has the name asked for.
var ErrNoBottle = errors.New("no such bottle")

// Resolve finds the bottle that a user means: by its name, or by what follows
// NamePrefix in it. A bottle of which only remains are left counts.
func (e *Engine) Resolve(ctx context.Context, name string) (string, error) {
	remains, err := e.Survey(ctx)
	if err != nil {
		return "", err
	}
	for _, want := range []string{name, names.Prefix + name} {
		for _, r := range remains {
			if r.Name == want {
				return want, nil
			}
		}
	}
	return "", &hint.Error{Err: fmt.Errorf("%w: %s", ErrNoBottle, name), Hint: "bottle list shows those that run"}
}

// Running tells whether the bottle's agent runs.
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
