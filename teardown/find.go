package teardown

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/scratch"
	"github.com/bot-bottle/bottle/internal/unmount"
	"github.com/bot-bottle/bottle/netns"
)

// Leftovers are the objects on this host that belong to one bottle.
type Leftovers struct {
	Name       string   `json:"name"`
	Containers []string `json:"containers"` // each with its task's state
	Networks   []string `json:"networks"`
	Files      []string `json:"files"` // directories, snapshots and mounts
	// Processes are those that no container accounts for, and their cgroups.
	Processes []string `json:"processes"`
	// Launching reports that another process is launching the bottle.
	Launching bool `json:"launching"`

	self Identity // without the name
}

// DyingTime is how long a killed process may hold its locks until the kernel has ended it.
const DyingTime = time.Second

// Find returns everything on this host that has a bottle's name: objects of running
// bottles and of those that a crash left incomplete. It changes nothing, and waits for at
// most the given time for processes that were just killed.
func (m *Manager) Find(ctx context.Context, wait time.Duration) ([]Leftovers, error) {
	// Directories first: what is found afterwards belongs to them, or to a later bottle.
	runDirs, err := bottleDirs(m.dir(""))
	if err != nil {
		return nil, err
	}
	ids := map[string]Identity{}
	for _, name := range runDirs {
		if ids[name], err = m.Identify(name); err != nil {
			return nil, err
		}
	}
	containers, err := m.rt.List(ctx)
	if err != nil {
		return nil, err
	}
	snapshots, err := m.rt.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	stateDirs, err := bottleDirs(m.StateDir(""))
	if err != nil {
		return nil, err
	}
	found := map[string]*Leftovers{}
	of := func(name string) *Leftovers {
		if found[name] == nil {
			found[name] = &Leftovers{
				Name: name, Containers: []string{}, Networks: []string{}, Files: []string{}, Processes: []string{}, self: ids[name],
			}
		}
		return found[name]
	}
	for _, c := range containers {
		l := of(names.Bottle(c.ID))
		l.Containers = append(l.Containers, fmt.Sprintf("%s (%s)", c.ID, c.Status))
	}
	for _, s := range snapshots {
		l := of(names.Bottle(s))
		l.Files = append(l.Files, "snapshot "+s)
	}
	incomplete, err := m.work.Incomplete()
	if err != nil {
		return nil, err
	}
	for _, name := range incomplete {
		of(name).Files = append(of(name).Files, m.work.Dir(name))
	}
	for _, name := range stateDirs {
		of(name).Files = append(of(name).Files, m.StateDir(name))
	}
	for _, name := range runDirs {
		dir, l := m.dir(name), of(name)
		l.Files = append(l.Files, dir)
		for _, p := range []string{netns.AgentPath(dir), netns.ProxyPath(dir)} {
			if _, err := os.Lstat(p); err == nil {
				l.Networks = append(l.Networks, p)
			}
		}
	}
	if err := m.findOnHost(ctx, wait, of); err != nil {
		return nil, err
	}
	out := make([]Leftovers, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if found[name].Launching, err = m.launching(ctx, name, wait); err != nil {
			return nil, err
		}
		out = append(out, *found[name])
	}
	return out, nil
}

// FindFirst is Find for the first of the given names that something belongs to; ok reports
// whether there is one. It costs the same for any number of bottles if a bottle with a
// directory on tmpfs has the name. Then the lists of what belongs to it are empty.
func (m *Manager) FindFirst(ctx context.Context, wanted []string) (l Leftovers, ok bool, err error) {
	for i, name := range wanted {
		bottle, err := m.withDir(name)
		if err != nil {
			return Leftovers{}, false, err
		}
		if bottle.dir == nil {
			continue
		}
		if left, err := m.occupied(ctx, wanted[:i]); err != nil || left {
			if err != nil {
				return Leftovers{}, false, err
			}
			break // a complete search finds it
		}
		l := Leftovers{Name: name, Containers: []string{}, Networks: []string{}, Files: []string{}, Processes: []string{}, self: bottle}
		l.Launching, err = m.launching(ctx, name, 0)
		return l, err == nil, err
	}
	found, err := m.Find(ctx, 0)
	if err != nil {
		return Leftovers{}, false, err
	}
	for _, name := range wanted {
		for _, l := range found {
			if l.Name == name {
				return l, true, nil
			}
		}
	}
	return Leftovers{}, false, nil
}

// withDir identifies the bottle that has a name, which a user has entered, and a directory
// on tmpfs; without one the identity has no directory.
func (m *Manager) withDir(name string) (Identity, error) {
	if isBottleDir(name) && filepath.Base(name) == name {
		if fi, err := os.Lstat(m.dir(name)); err == nil && fi.IsDir() {
			return m.Identify(name)
		}
	}
	return Identity{Name: name}, nil
}

// occupied reports whether something belongs to one of the names, of which none has a
// directory on tmpfs. Processes are not searched for: a removal removes the directory last.
func (m *Manager) occupied(ctx context.Context, wanted []string) (bool, error) {
	if len(wanted) == 0 {
		return false, nil
	}
	ids, err := m.rt.IDs(ctx)
	if err != nil {
		return false, err
	}
	incomplete, err := m.work.Incomplete()
	if err != nil {
		return false, err
	}
	stateDirs, err := bottleDirs(m.StateDir(""))
	if err != nil {
		return false, err
	}
	for _, name := range wanted {
		if ids[name] || ids[names.Proxy(name)] || ids[names.Front(name)] || slices.Contains(incomplete, name) || slices.Contains(stateDirs, name) {
			return true, nil
		}
	}
	return false, nil
}

// findOnHost finds what neither containerd nor a directory shows: processes, cgroups,
// mounts, and the scratch directories of dead processes.
func (m *Manager) findOnHost(ctx context.Context, wait time.Duration, of func(name string) *Leftovers) error {
	strays, err := m.rt.Strays(ctx)
	if err != nil {
		return err
	}
	for name, list := range strays {
		// Where there are containers, they are shown with the state of their processes.
		if l := of(name); len(l.Containers) == 0 {
			l.Processes = append(l.Processes, list...)
		}
	}
	abandoned, err := scratch.Abandoned(ctx, m.dir(""), wait)
	if err != nil {
		return err
	}
	for _, dir := range abandoned {
		of(filepath.Base(dir)).Files = append(of(filepath.Base(dir)).Files, dir)
	}
	points, err := unmount.List(m.dir(""))
	if err != nil {
		return err
	}
	for _, p := range points {
		rel, err := filepath.Rel(m.dir(""), p)
		name, _, below := strings.Cut(rel, "/")
		if err != nil || !below || strings.HasPrefix(name, ".") {
			continue
		}
		if !slices.Contains(of(name).Networks, p) {
			of(name).Files = append(of(name).Files, "mount "+p)
		}
	}
	return nil
}
