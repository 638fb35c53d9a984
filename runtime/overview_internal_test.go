package runtime

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

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
