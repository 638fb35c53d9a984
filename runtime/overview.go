package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/containers"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/proven"
)

// Containerd sends a container only with its spec, some ten kilobytes, and a list of bottles
// needs its labels. So that a list takes as long with many bottles as with one, their
// directories have a note of what containerd knows of each container. It describes a
// container as long as that runs: a list asks containerd about all others.

// noteFile is the name of a container's note in its part of the bottle's directory.
const noteFile = "container.json"

// note describes a container as containerd does.
type note struct {
	ID      string            `json:"id"`
	Runtime string            `json:"runtime"` // containerd's name of it
	Labels  map[string]string `json:"labels"`
	Created time.Time         `json:"created"`
	// Started is nil until the container's task was started.
	Started *started `json:"started,omitempty"`
}

// started is what shows that a task still runs which bottle has started: a list then reads
// neither the runtime's record nor the arguments of processes.
type started struct {
	PID    uint32 `json:"pid"`    // of the first process
	Start  uint64 `json:"start"`  // of it
	Parent int    `json:"parent"` // the shim, which is its parent only as long as it exists
	// Record identifies the runtime's record, which is written when the state of the task
	// changes.
	Record string `json:"record"`
}

func (c *Client) notePath(id string) string {
	return filepath.Join(c.Dir(names.Bottle(id)), proxyDir(id), noteFile)
}

// noteCreated writes the note of a container that was just created. A list without it takes
// longer, and is the same. A part of a note, of a writer that was killed, is none.
func (c *Client) noteCreated(r containers.Container) {
	c.writeNote(note{ID: r.ID, Runtime: r.Runtime.Name, Labels: r.Labels, Created: r.CreatedAt})
}

func (c *Client) writeNote(n note) {
	data, err := json.Marshal(n)
	if err == nil {
		err = os.WriteFile(c.notePath(n.ID), data, 0o600)
	}
	if err != nil {
		c.log.Info("cannot note a container", "container", n.ID, "error", err)
	}
}

// readNote returns the note of a container; ok is false if there is none.
func (c *Client) readNote(id string) (n note, ok bool) {
	err := json.Unmarshal(hosttask.ReadFile(c.notePath(id)), &n)
	return n, err == nil && n.ID == id && n.Labels[LabelName] != ""
}

// noteStarted adds to the note of a container that its task was started.
func (c *Client) noteStarted(id string) {
	n, ok := c.readNote(id)
	if !ok {
		return
	}
	// Before it is read: a later change is then seen.
	record, err := proven.File(c.recordPath(id, n.Runtime))
	s, parent, ok := c.ownState(n.container())
	if err != nil || !ok || s.status != "running" {
		return
	}
	p, ok := hosttask.ProcessOf(int(s.pid))
	if !ok || p.Parent != parent {
		return
	}
	n.Started = &started{PID: s.pid, Start: p.Start, Parent: parent, Record: record}
	c.writeNote(n)
}

func (n note) container() containers.Container {
	return containers.Container{ID: n.ID, Runtime: containers.RuntimeInfo{Name: n.Runtime}}
}

// notedState returns the state of a container that has a note, as hostState does.
func (c *Client) notedState(n note) (s taskState, ok bool) {
	was := n.Started
	if was == nil {
		return c.hostState(n.container())
	}
	p, ok := hosttask.ProcessOf(int(was.PID))
	record, err := proven.File(c.recordPath(n.ID, n.Runtime))
	if !ok || p.Start != was.Start || p.Parent != was.Parent || err != nil || record != was.Record {
		return c.hostState(n.container())
	}
	s = taskState{status: "running", pid: was.PID}
	if n.Runtime == shimRunc && c.frozen(n.ID) { // which is in no record
		s.status = "paused"
	}
	return s, true
}

// Overview is List for display. It asks containerd only for containers that have no note, or
// that do not run according to the host. What it says of a running container decides on
// nothing: somebody may have changed it in containerd.
func (c *Client) Overview(ctx context.Context) ([]Container, error) {
	bottles, err := c.bottleNames()
	if err != nil {
		return nil, err
	}
	// At the same time: the containers of these bottles by what is on the host, and whatever
	// else there is by containerd, which also has what is created meanwhile.
	var others []Container
	var lerr error
	listed := make(chan struct{})
	go func() {
		defer close(listed)
		others, lerr = c.list(ctx, except(containersOf(bottles...))...)
	}()
	found, unknown := c.noted(bottles)
	<-listed
	if lerr != nil {
		return nil, lerr
	}
	found = append(found, others...)
	if len(unknown) > 0 {
		var filters []string
		for _, id := range unknown {
			filters = append(filters, "id=="+strconv.Quote(id))
		}
		rest, err := c.list(ctx, filters...)
		if err != nil {
			return nil, err
		}
		found = append(found, rest...)
	}
	return found, nil
}

// containersOf returns the IDs of the containers that bottles may have.
func containersOf(bottles ...string) []string {
	ids := make([]string, 0, 3*len(bottles))
	for _, name := range bottles {
		ids = append(ids, name, names.Proxy(name), names.Front(name))
	}
	return ids
}

// bottleNames returns the names of the bottles that have a directory.
func (c *Client) bottleNames() ([]string, error) {
	dir, err := os.Open(c.Dir(""))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list bottles' directories: %w", err)
	}
	defer func() { _ = dir.Close() }() // nothing was written
	all, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list bottles' directories: %w", err)
	}
	return slices.DeleteFunc(all, func(name string) bool { return strings.HasPrefix(name, ".") }), nil
}

// noted returns those containers of bottles that have a note and whose processes exist, and
// the IDs of the others that they may have.
func (c *Client) noted(bottles []string) (found []Container, unknown []string) {
	perBottle := make([]struct {
		found   []Container
		unknown []string
	}, len(bottles))
	workers := min(goruntime.GOMAXPROCS(0), len(bottles))
	var wg sync.WaitGroup
	for first := range workers {
		wg.Go(func() {
			for i := first; i < len(bottles); i += workers {
				b := &perBottle[i]
				for _, id := range containersOf(bottles[i]) {
					if r, ok := c.notedContainer(id); ok {
						b.found = append(b.found, r)
					} else if id != names.Front(bottles[i]) || c.hasPart(id) { // few have it
						b.unknown = append(b.unknown, id)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, b := range perBottle {
		found, unknown = append(found, b.found...), append(unknown, b.unknown...)
	}
	return found, unknown
}

// hasPart reports whether there is a directory for a container in its bottle's.
func (c *Client) hasPart(id string) bool {
	_, err := os.Lstat(filepath.Dir(c.notePath(id)))
	return !errors.Is(err, fs.ErrNotExist)
}

func (c *Client) notedContainer(id string) (Container, bool) {
	n, ok := c.readNote(id)
	if !ok {
		return Container{}, false
	}
	s, ok := c.notedState(n)
	return Container{ID: id, Role: n.Labels[LabelRole], Labels: n.Labels, Created: n.Created, Status: s.status, PID: s.pid}, ok
}

// RunningByNotes is RunningOnHost without a call of containerd. It may report false for tasks
// that are running, and true if somebody has removed their containers from containerd.
func (c *Client) RunningByNotes(ids ...string) bool {
	for _, id := range ids {
		if r, ok := c.notedContainer(id); !ok || r.Status != "running" {
			return false
		}
	}
	return true
}
