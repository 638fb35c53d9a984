package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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
const noteFile = "container"

// note describes a container as containerd does.
type note struct {
	ID      string
	Runtime string // containerd's name of it
	Labels  map[string]string
	Created time.Time
	// Started is nil until the container's task was started.
	Started *started
}

// started is what shows that a task still runs which bottle has started: a list then reads
// neither the runtime's record nor the arguments of processes.
type started struct {
	PID    uint32 // of the first process
	Start  uint64 // of it
	Parent int    // the shim, which is its parent only as long as it exists
	// Record identifies the runtime's record, which is written when the state of the task
	// changes.
	Record string
	// Bundle is containerd's directory of the task; empty if it was not found.
	Bundle string
}

// noteFormat begins a note.
const noteFormat = "bottle note 1"

// encode returns the note as fields that end with NUL bytes: reading it takes a tenth of the
// time that JSON does, which was a third of a list's for each bottle.
func (n note) encode() ([]byte, error) {
	w := n.Started
	if w == nil {
		w = &started{}
	}
	created, err := n.Created.MarshalText()
	if err != nil {
		return nil, fmt.Errorf("encode the time of creation: %w", err)
	}
	fields := []string{
		noteFormat, n.ID, n.Runtime, string(created),
		strconv.FormatUint(uint64(w.PID), 10), strconv.FormatUint(w.Start, 10), strconv.Itoa(w.Parent), w.Record, w.Bundle,
		strconv.Itoa(len(n.Labels)),
	}
	for _, key := range slices.Sorted(maps.Keys(n.Labels)) {
		fields = append(fields, key, n.Labels[key])
	}
	text := strings.Join(fields, "\x00") + "\x00"
	if strings.Count(text, "\x00") != len(fields) {
		return nil, errors.New("a field contains a NUL byte")
	}
	return []byte(text), nil
}

// decodeNote is the reverse of encode. ok is false for everything else, such as a part of a
// note.
func decodeNote(data []byte) (n note, ok bool) {
	rest, ok := string(data), true
	next := func() (field string) {
		var more bool
		field, rest, more = strings.Cut(rest, "\x00")
		ok = ok && more
		return field
	}
	number := func(bits int) uint64 {
		v, err := strconv.ParseUint(next(), 10, bits)
		ok = ok && err == nil
		return v
	}
	ok = next() == noteFormat && ok
	n = note{ID: next(), Runtime: next()}
	ok = n.Created.UnmarshalText([]byte(next())) == nil && ok
	w := started{PID: uint32(number(32)), Start: number(64), Parent: int(number(31)), Record: next(), Bundle: next()}
	if w.PID != 0 {
		n.Started = &w
	}
	labels := int(number(16))
	if !ok {
		return note{}, false
	}
	n.Labels = make(map[string]string, labels)
	for range labels {
		key := next()
		n.Labels[key] = next()
	}
	return n, ok && rest == ""
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
	data, err := n.encode()
	if err == nil {
		err = os.WriteFile(c.notePath(n.ID), data, 0o600)
	}
	if err != nil {
		c.log.Info("cannot note a container", "container", n.ID, "error", err)
	}
}

// readNote returns the note of a container; ok is false if there is none.
func (c *Client) readNote(id string) (n note, ok bool) {
	var buf [4096]byte
	path := c.notePath(id)
	data := hosttask.ReadOnce(path, buf[:])
	if len(data) == len(buf) { // the labels are unusually long
		data = hosttask.ReadFile(path)
	}
	n, ok = decodeNote(data)
	return n, ok && n.ID == id && n.Labels[LabelName] != ""
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
	bundle, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", parent)) // where a shim works
	if !strings.HasSuffix(bundle, c.bundleSuffix(id)) {
		bundle = ""
	}
	n.Started = &started{PID: s.pid, Start: p.Start, Parent: parent, Record: record, Bundle: bundle}
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
	known := c.noted(bottles)
	<-listed
	if lerr != nil {
		return nil, lerr
	}
	rest, err := c.listOnly(ctx, known.unknown)
	return slices.Concat(known.found, others, rest), err
}

// OverviewOfTasks is Overview without containers that have neither a task nor a directory. To
// find out that no other has one it reads containerd's directory of tasks, because
// containerd reads all of its containers, with their specs, before it leaves out any.
func (c *Client) OverviewOfTasks(ctx context.Context) ([]Container, error) {
	bottles, err := c.bottleNames()
	if err != nil {
		return nil, err
	}
	known := c.noted(bottles)
	// After the bottles' directories, so that a launch that begins now is in one of the two.
	others, ok := known.otherTasks()
	if !ok {
		return c.Overview(ctx)
	}
	rest, err := c.listOnly(ctx, append(known.unknown, others...))
	return append(known.found, rest...), err
}

// listOnly is List for containers of which some may not exist.
func (c *Client) listOnly(ctx context.Context, ids []string) ([]Container, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	filters := make([]string, len(ids))
	for i, id := range ids {
		filters[i] = "id==" + strconv.Quote(id)
	}
	return c.list(ctx, filters...)
}

// otherTasks returns the IDs of containerd's tasks that are not of known containers. It finds
// containerd's directory of tasks by those that bottle has started, and ok is false
// unless all of these are in it: containerd may have been given another one, or this process
// may not see it.
func (k notedContainers) otherTasks() (ids []string, ok bool) {
	listed := map[string]map[string]bool{} // the tasks in each directory
	for _, bundle := range k.bundles {
		dir := filepath.Dir(bundle)
		if listed[dir] == nil {
			all, err := namesIn(dir)
			if err != nil {
				return nil, false
			}
			listed[dir] = make(map[string]bool, len(all))
			for _, id := range all {
				listed[dir][id] = true
			}
		}
		if !listed[dir][filepath.Base(bundle)] {
			return nil, false
		}
	}
	known := make(map[string]bool, len(k.found)+len(k.unknown))
	for _, r := range k.found {
		known[r.ID] = true
	}
	for _, id := range k.unknown {
		known[id] = true
	}
	for _, tasks := range listed {
		for id := range tasks {
			if !known[id] {
				ids = append(ids, id)
			}
		}
	}
	return ids, len(listed) > 0
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
	all, err := namesIn(c.Dir(""))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list bottles' directories: %w", err)
	}
	return slices.DeleteFunc(all, func(name string) bool { return strings.HasPrefix(name, ".") }), nil
}

// namesIn returns the names of the files in a directory, in no order.
func namesIn(path string) ([]string, error) {
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dir.Close() }() // nothing was written
	return dir.Readdirnames(-1)
}

// notedContainers are the containers that bottles may have.
type notedContainers struct {
	found   []Container // have a note, and their processes exist
	bundles []string    // containerd's directories of those that were started, if they were found
	unknown []string    // IDs of the others
}

func (c *Client) noted(bottles []string) (all notedContainers) {
	perBottle := make([]notedContainers, len(bottles))
	workers := min(goruntime.GOMAXPROCS(0), len(bottles))
	var wg sync.WaitGroup
	for first := range workers {
		wg.Go(func() {
			for i := first; i < len(bottles); i += workers {
				b := &perBottle[i]
				for _, id := range containersOf(bottles[i]) {
					if id == names.Front(bottles[i]) && !c.hasPart(id) { // few have it
						continue
					}
					if r, bundle, ok := c.notedContainer(id); ok {
						b.found = append(b.found, r)
						if bundle != "" {
							b.bundles = append(b.bundles, bundle)
						}
					} else {
						b.unknown = append(b.unknown, id)
					}
				}
			}
		})
	}
	wg.Wait()
	for _, b := range perBottle {
		all.found, all.bundles, all.unknown = append(all.found, b.found...), append(all.bundles, b.bundles...), append(all.unknown, b.unknown...)
	}
	return all
}

// hasPart reports whether there is a directory for a container in its bottle's.
func (c *Client) hasPart(id string) bool {
	_, err := os.Lstat(filepath.Dir(c.notePath(id)))
	return !errors.Is(err, fs.ErrNotExist)
}

// notedContainer also returns containerd's directory of the task, if it was found.
func (c *Client) notedContainer(id string) (r Container, bundle string, ok bool) {
	n, ok := c.readNote(id)
	if !ok {
		return Container{}, "", false
	}
	if n.Started != nil {
		bundle = n.Started.Bundle
	}
	s, ok := c.notedState(n)
	return Container{ID: id, Role: n.Labels[LabelRole], Labels: n.Labels, Created: n.Created, Status: s.status, PID: s.pid}, bundle, ok
}

// RunningByNotes is RunningOnHost without a call of containerd. It may report false for tasks
// that are running, and true if somebody has removed their containers from containerd.
func (c *Client) RunningByNotes(ids ...string) bool {
	for _, id := range ids {
		if r, _, ok := c.notedContainer(id); !ok || r.Status != "running" {
			return false
		}
	}
	return true
}
