package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

// Remains is what cleanup found of one bottle.
type Remains struct {
	Name       string   `json:"name"`
	Containers []string `json:"containers"` // each with its task's state
	Networks   []string `json:"networks"`
	Files      []string `json:"files"` // folders and snapshots
}

// Survey returns everything on this host that carries bottle's names, of
// bottles that run as well as of those that a crash left half made. It changes
// nothing.
func (e *Engine) Survey(ctx context.Context) ([]Remains, error) {
	found := map[string]*Remains{}
	at := func(name string) *Remains {
		if found[name] == nil {
			found[name] = &Remains{Name: name, Containers: []string{}, Networks: []string{}, Files: []string{}}
		}
		return found[name]
	}
	if err := e.surveyContainerd(ctx, at); err != nil {
		return nil, err
	}
	if err := e.surveyFolders(at); err != nil {
		return nil, err
	}
	out := make([]Remains, 0, len(found))
	for _, r := range found {
		out = append(out, *r)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

func (e *Engine) surveyContainerd(ctx context.Context, at func(string) *Remains) error {
	containers, err := e.rt.List(ctx, names.Prefix)
	if err != nil {
		return err
	}
	for _, c := range containers {
		r := at(strings.TrimSuffix(c.ID, runtime.ProxySuffix))
		r.Containers = append(r.Containers, fmt.Sprintf("%s (%s)", c.ID, c.Status))
	}
	snapshots, err := e.rt.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		r := at(strings.TrimSuffix(s, runtime.ProxySuffix))
		r.Files = append(r.Files, "snapshot "+s)
	}
	return nil
}

func (e *Engine) surveyFolders(at func(string) *Remains) error {
	names, err := e.folders()
	if err != nil {
		return err
	}
	kept, err := foldersIn(e.stateDir(""))
	if err != nil {
		return err
	}
	for _, n := range kept {
		r := at(n)
		r.Files = append(r.Files, e.stateDir(n))
	}
	for _, n := range names {
		r := at(n)
		r.Files = append(r.Files, e.dir(n))
		for _, p := range []string{netns.AgentPath(e.dir(n)), netns.ProxyPath(e.dir(n))} {
			if _, err := os.Lstat(p); err == nil {
				r.Networks = append(r.Networks, p)
			}
		}
	}
	return nil
}

// Clean removes remains that Survey found, and last what the networks share, if
// no bottle is left. It goes on past failures; the error names each.
func (e *Engine) Clean(ctx context.Context, remains []Remains) error {
	var errs []error
	for _, r := range remains {
		if err := e.Remove(ctx, r.Name); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}
