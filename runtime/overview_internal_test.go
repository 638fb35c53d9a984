package runtime

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"

	"github.com/bot-bottle/bottle/internal/proven"
)

// TestNotedState: what was noted when a task was started counts only for the process that
// was started then, with its shim and the same record of the runtime. Everything else is
// decided as without it.
func TestNotedState(t *testing.T) {
	const id = "claude-bottle-noted"
	c := &Client{cfg: Config{RunDir: t.TempDir(), Namespace: "ns", Address: "/run/x/containerd.sock"}, log: slog.New(slog.DiscardHandler)}
	record := c.recordPath(id, shimRunsc)
	pid, end := standIns(t, c, id, filepath.Dir(record))
	put := func(status string) { putRecord(t, record, `{"status": %q, "sandbox": {"pid": %d}}`, status, pid) }
	put("created")
	c.noteCreated(containers.Container{ID: id, Runtime: containers.RuntimeInfo{Name: shimRunsc}, Labels: map[string]string{LabelName: id}})
	read := func() note {
		t.Helper()
		n, ok := c.readNote(id)
		if !ok {
			t.Fatal("no note")
		}
		return n
	}
	if c.noteStarted(id); read().Started != nil {
		t.Error("noted as started before the start")
	}
	put("running")
	if c.noteStarted(id); read().Started == nil {
		t.Fatal("not noted as started")
	}
	want := func(what, want string, change func(*started)) {
		t.Helper()
		n := read()
		change(n.Started)
		if s, ok := c.notedState(n); ok != (want != "") || s.status != want {
			t.Errorf("%s: %q, %v; want %q", what, s.status, ok, want)
		}
	}
	same := func(*started) {}
	want("started", "running", same)
	put("paused")
	want("another record", "paused", same)
	put("running")
	want("the same state again", "running", same)
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	want("without a record", "", same)
	// From here on the record cannot be read, but has the identity that was noted.
	if err := os.Mkdir(record, 0o700); err != nil {
		t.Fatal(err)
	}
	as := func(change func(*started)) func(*started) {
		return func(s *started) {
			s.Record = identityOf(t, record)
			change(s)
		}
	}
	want("control: the noted identity", "running", as(same))
	want("another process", "", as(func(s *started) { s.PID = uint32(os.Getpid()) }))
	want("another start", "", as(func(s *started) { s.Start++ }))
	want("another parent", "", as(func(s *started) { s.Parent = os.Getpid() }))
	end()
	want("ended", "", as(same))
}

func identityOf(t *testing.T, path string) string {
	t.Helper()
	id, err := proven.File(path)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestNoteEncoding: a note is read as it was written, and no part of one is a note.
func TestNoteEncoding(t *testing.T) {
	for _, n := range []note{
		{ID: "a", Runtime: shimRunc, Labels: map[string]string{}},
		{ID: "a", Runtime: shimRunsc, Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Labels: map[string]string{
			LabelName: "a", LabelAgent: "ü \n", LabelImage: "", "end": "1", "": "x",
		}, Started: &started{PID: 1<<32 - 1, Start: 1<<64 - 1, Parent: 2, Record: "/r 1 {2 3}", Bundle: "/b"}},
	} {
		text, err := n.encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := decodeNote(text); !ok || !reflect.DeepEqual(got, n) {
			t.Errorf("decoded %+v, %v; want %+v", got, ok, n)
		}
		for i := range text {
			if got, ok := decodeNote(text[:i]); ok {
				t.Errorf("%d of %d bytes: %+v", i, len(text), got)
			}
		}
		if _, ok := decodeNote(append(text, 'x')); ok {
			t.Error("decoded with something after it")
		}
		if _, ok := decodeNote([]byte(strings.Replace(string(text), noteFormat, noteFormat+"0", 1))); ok {
			t.Error("decoded another format")
		}
	}
	if text, err := (note{ID: "a", Labels: map[string]string{LabelAgent: "x\x00y"}}).encode(); err == nil {
		t.Errorf("encoded a NUL byte: %q", text)
	}
}

// TestOtherTasks: containerd's directory of tasks counts only if it has all that bottle knows
// to run.
func TestOtherTasks(t *testing.T) {
	dir := t.TempDir()
	for _, id := range []string{"a", "a.proxy", "unknown", "other"} {
		if err := os.Mkdir(filepath.Join(dir, id), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	in := func(names ...string) (bundles []string) {
		for _, name := range names {
			bundles = append(bundles, filepath.Join(dir, name))
		}
		return bundles
	}
	found := []Container{{ID: "a"}, {ID: "a.proxy"}, {ID: "created"}}
	for _, c := range []struct {
		name    string
		bundles []string
		ok      bool
	}{
		{"all", in("a", "a.proxy"), true},
		{"none noted", nil, false},
		{"one is missing", in("a", "gone"), false},
		{"no such directory", append(in("a"), "/proc/none/a.proxy"), false},
	} {
		ids, ok := notedContainers{found: found, bundles: c.bundles, unknown: []string{"unknown", "none"}}.otherTasks()
		if ok != c.ok || ok && !reflect.DeepEqual(ids, []string{"other"}) {
			t.Errorf("%s: %q, %v", c.name, ids, ok)
		}
	}
}
