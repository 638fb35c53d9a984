package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"
	"sync"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"

	"github.com/bot-bottle/bottle/internal/shareddir"

	"github.com/bot-bottle/bottle/runtime"
)

// Remove takes away everything that belongs to a bottle's name, running or not,
// whole or half made. It is idempotent, runs to its end whatever becomes of
// ctx, goes on past failures and returns them all.
func (e *Engine) Remove(ctx context.Context, name string) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	return e.remove(ctx, name, &Timings{})
}

func (e *Engine) remove(ctx context.Context, name string, t *Timings) error {
	defer t.begin("teardown")()
	if err := e.proxies.MarkRemoving(ctx, name); err != nil {
		return err
	}
	// All at once: a task loses its links while it is being ended, and the
	// network's rules go only after the links. What fails does not keep the
	// rest: cleanup finds what stays.
	parts := []struct {
		step string
		fn   func() error
	}{
		{"remove agent", func() error { return e.rt.Remove(ctx, name) }},
		{"remove proxy", func() error { return e.rt.Remove(ctx, name+runtime.ProxySuffix) }},
		{"remove networks", func() error { return e.net.Remove(ctx, e.dir(name)) }},
	}
	errs := make([]error, len(parts))
	var wg sync.WaitGroup
	for i, p := range parts {
		wg.Go(func() {
			defer t.begin(p.step)()
			errs[i] = p.fn()
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	if err != nil {
		// The folder stays: it is by its name that cleanup finds the rest.
		return err
	}
	return e.removeFolders(name)
}

// removeFolders removes a bottle's folders, and those above them that are empty
// now.
func (e *Engine) removeFolders(name string) error {
	err := errors.Join(os.RemoveAll(e.stateDir(name)), os.RemoveAll(e.dir(name)))
	if err != nil {
		return fmt.Errorf("remove the folders of %s: %w", name, err)
	}
	e.removeEmpty()
	return nil
}

// removeEmpty removes the folders that all bottles share, which fails while one
// is there, as it should.
func (e *Engine) removeEmpty() {
	shareddir.Prune(e.dir(""), e.cfg.RunDir, e.stateDir(""), e.cfg.StateDir)
}

// Remove ends the bottle: agent and proxy, networks, folders.
func (b *Bottle) Remove(ctx context.Context) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	b.relay.close()
	defer b.relay.wait()
	return b.e.remove(ctx, b.Name, b.Timings)
}

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
