package runtime_test

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/bot-bottle/bottle/runtime"
)

// wantOverview checks that the overviews say the same of a container as a list, which asks
// containerd: its state, or that there is none.
func wantOverview(t *testing.T, c *runtime.Client, id, when, want string) {
	t.Helper()
	find := func(list []runtime.Container, err error) runtime.Container {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		list = slices.DeleteFunc(list, func(r runtime.Container) bool { return r.ID != id })
		if len(list) > 1 {
			t.Errorf("%s: listed %d times", when, len(list))
		}
		return slices.Concat(list, []runtime.Container{{}})[0]
	}
	checked := find(c.List(ctx(t)))
	for what, got := range map[string]runtime.Container{"overview": find(c.Overview(ctx(t))), "overview of tasks": find(c.OverviewOfTasks(ctx(t)))} {
		if got.Status != want || !got.Created.Equal(checked.Created) || !maps.Equal(got.Labels, checked.Labels) ||
			cmp.Or(cmp.Compare(got.Role, checked.Role), cmp.Compare(got.Status, checked.Status), cmp.Compare(got.PID, checked.PID)) != 0 {
			t.Errorf("%s: %s %+v, list %+v, want state %q", when, what, got, checked, want)
		}
	}
}

// TestOverview: an overview is the same as a list in each state of a container, and whatever
// has happened to it or to its note.
func TestOverview(t *testing.T) {
	forEachRuntime(t, func(t *testing.T, c *runtime.Client, cfg runtime.AgentConfig) {
		id := cfg.Name
		// By which containerd's directory of tasks is found, whatever happens to the other.
		started(t, c, agentConfig(t, c, id+"-witness", runtime.RuntimeRunc))
		wantBundle := func(id string) {
			t.Helper()
			text, err := os.ReadFile(filepath.Join(c.Dir(id), "container"))
			if err != nil || !strings.Contains(string(text), "/io.containerd.runtime.v2.task/") {
				t.Errorf("the note of a started task does not name its bundle: %q, %v", text, err)
			}
		}
		wantBundle(id + "-witness")
		want := func(when, status string) {
			t.Helper()
			wantOverview(t, c, id, when, status)
		}
		want("none", "")
		task := created(t, c, cfg)
		want("created", "created")
		must(t, task.Start(ctx(t)))
		want("started", "running")
		wantBundle(id)
		nctx := namespaces.WithNamespace(ctx(t), c.Namespace())
		cont, err := c.Containerd().LoadContainer(nctx, id)
		if err != nil {
			t.Fatal(err)
		}
		loaded, err := cont.Task(nctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		must(t, loaded.Pause(nctx))
		want("paused", "paused")
		must(t, loaded.Resume(nctx))
		want("resumed", "running")
		// A note that another process writes, or has left when it was killed.
		note := filepath.Join(c.Dir(id), "container")
		text, err := os.ReadFile(note)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{0, 1, len(text) / 2, len(text) - 1} {
			must(t, os.WriteFile(note, text[:n], 0o600))
			want(fmt.Sprintf("%d of %d bytes of the note", n, len(text)), "running")
		}
		must(t, os.Remove(note))
		want("without a note", "running")
		// Containers of which no directory is left are found as before. gVisor's shim needs it.
		if cfg.Runtime == runtime.RuntimeRunc {
			must(t, os.Rename(c.Dir(id), c.Dir("."+id)))
			want("without a directory", "running")
			must(t, os.Rename(c.Dir("."+id), c.Dir(id)))
		}
		must(t, os.WriteFile(note, text, 0o600))
		want("with its note again", "running")
		must(t, syscall.Kill(task.PID(), syscall.SIGKILL))
		<-task.Exited()
		want("killed", "stopped")
		if cfg.Runtime == runtime.RuntimeRunsc {
			return // whose processes take 10 s to end if the rest is done by hand
		}
		if _, err := loaded.Delete(nctx); err != nil {
			t.Fatal(err)
		}
		want("without a task", "none")
		must(t, c.Containerd().ContainerService().Delete(nctx, id))
		want("removed by hand", "")
		if _, err := os.Lstat(note); err != nil {
			t.Errorf("control: the note is left: %v", err)
		}
	})
}
