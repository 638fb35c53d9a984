package runtime

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/typeurl/v2"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// counted returns a client of the test host's containerd with its own run directory, and a
// function that returns the number of calls of each method since the last time.
func counted(t *testing.T) (*Client, func() map[string]int) {
	t.Helper()
	var mu sync.Mutex
	calls := map[string]int{}
	add := func(method string) {
		mu.Lock()
		defer mu.Unlock()
		calls[filepath.Base(method)]++
	}
	address := os.Getenv("CONTAINERD_ADDRESS")
	ctrd, err := containerd.New(address, containerd.WithExtraDialOpts([]grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			add(method)
			return invoke(ctx, method, req, reply, cc, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			add(method)
			return open(ctx, desc, cc, method, opts...)
		}),
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := ctrd.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &Client{ctrd: ctrd, cfg: Config{Address: address, Namespace: os.Getenv("CONTAINERD_NAMESPACE"), RunDir: t.TempDir(), Snapshotter: "overlayfs"}}
	return c, func() map[string]int {
		mu.Lock()
		defer mu.Unlock()
		defer clear(calls)
		return maps.Clone(calls)
	}
}

// record creates the record of a container in containerd, without a task.
func record(t *testing.T, c *Client, id string) {
	t.Helper()
	ctx := c.withNamespace(context.WithoutCancel(t.Context()))
	spec, err := typeurl.MarshalAny(&specs.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.ctrd.ContainerService().Create(ctx, containers.Container{
		ID: id, Labels: map[string]string{LabelName: id, LabelRole: RoleAgent}, Runtime: containers.RuntimeInfo{Name: shimRunsc},
		Spec: spec,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.ctrd.ContainerService().Delete(ctx, id); err != nil {
			t.Error(err)
		}
	})
}

// standInProxy makes a proxy's container that runs according to the host.
func standInProxy(t *testing.T, c *Client, id string) {
	t.Helper()
	state := c.recordPath(id, shimRunc)
	pid, _ := standIns(t, c, id, filepath.Dir(filepath.Dir(state)))
	p, ok := hosttask.ProcessOf(pid)
	if !ok {
		t.Fatalf("process %d has ended", pid)
	}
	putRecord(t, state, `{"init_process_pid": %d, "init_process_start": %d}`, pid, p.Start)
	c.noteCreated(containers.Container{ID: id, Runtime: containers.RuntimeInfo{Name: shimRunc}, Labels: map[string]string{LabelName: id, LabelRole: RoleProxy}})
}

// TestListCalls: the calls to containerd that describe running bottles do not grow with
// their number, nor do those that concern one of them.
func TestListCalls(t *testing.T) {
	leakcheck.Check(t)
	c, calls := counted(t)
	var ids []string
	for _, n := range []int{1, 8} {
		for i := len(ids); i < n; i++ {
			id := fmt.Sprintf("claude-bottle-calls-%d", i)
			record(t, c, id)
			dir := filepath.Join(c.Dir(id), "runsc", c.cfg.Namespace)
			pid, _ := standIns(t, c, id, dir)
			putRecord(t, filepath.Join(dir, id+"_sandbox:"+id+".state"), `{"status": "running", "sandbox": {"pid": %d}}`, pid)
			ids = append(ids, id)
		}
		calls()
		want := func(what string, want map[string]int, err error) {
			t.Helper()
			if got := calls(); err != nil || !maps.Equal(got, want) {
				t.Errorf("%d bottles: %s: calls %v, %v; want %v", n, what, got, err, want)
			}
		}
		list, err := c.List(t.Context())
		want("list", map[string]int{"ListStream": 1}, err)
		var running []string
		for _, l := range list {
			if l.Status == "running" {
				running = append(running, l.ID)
			}
		}
		slices.Sort(running)
		if !slices.Equal(running, ids) {
			t.Errorf("running %q, want %q", running, ids)
		}
		// Without notes a second call is needed, and with them containerd sends nothing.
		overview := func(what string, of func(context.Context) ([]Container, error), calls map[string]int) {
			t.Helper()
			list, err := of(t.Context())
			want(what, calls, err)
			if list = slices.DeleteFunc(list, func(l Container) bool { return l.Role != RoleAgent || l.Status != "running" }); len(list) != len(ids) {
				t.Errorf("%d bottles: %s: %+v", n, what, list)
			}
		}
		overview("overview without notes", c.Overview, map[string]int{"ListStream": 2})
		all, err := c.records(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if slices.Contains(ids, r.ID) {
				c.noteCreated(r)
				standInProxy(t, c, r.ID+ProxySuffix)
			}
		}
		calls()
		overview("overview", c.Overview, map[string]int{"ListStream": 1})
		// Nothing shows where containerd's directory of tasks is, and then that all are known.
		overview("tasks without a bundle", c.OverviewOfTasks, map[string]int{"ListStream": 1})
		tasks := t.TempDir()
		for _, id := range containersOf(ids...) {
			if note, ok := c.readNote(id); ok {
				note.Started = &started{PID: 1, Bundle: filepath.Join(tasks, id)}
				c.writeNote(note)
				if err := os.Mkdir(note.Started.Bundle, 0o700); err != nil {
					t.Fatal(err)
				}
			}
		}
		overview("tasks", c.OverviewOfTasks, map[string]int{})
		if err := os.Mkdir(filepath.Join(tasks, "other"), 0o700); err != nil {
			t.Fatal(err)
		}
		overview("with another task", c.OverviewOfTasks, map[string]int{"ListStream": 1})
		left, err := c.records(t.Context(), except(ids)...)
		if err != nil || slices.ContainsFunc(left, func(r containers.Container) bool { return slices.Contains(ids, r.ID) }) {
			t.Errorf("containers that were left out: %v, %v", left, err)
		}
		calls()
		_, err = c.IDs(t.Context())
		want("names", map[string]int{"ListStream": 1, "List": 1}, err)
		// Whether an agent runs decides what may be removed: the shim answers, which does
		// not know the task here.
		alive, err := c.Alive(t.Context(), ids[0])
		want("alive", map[string]int{"Get": 2}, err)
		if alive {
			t.Error("alive without a task")
		}
	}
	record(t, c, "claude-bottle-calls-lost")
	calls()
	list, err := c.List(t.Context())
	if got := calls(); err != nil || !maps.Equal(got, map[string]int{"ListStream": 1, "Get": 1}) {
		t.Errorf("with one that does not run: calls %v, %v", got, err)
	}
	if i := slices.IndexFunc(list, func(l Container) bool { return l.ID == "claude-bottle-calls-lost" }); i < 0 || list[i].Status != statusNone {
		t.Errorf("listed %+v", list)
	}
	if alive, err := c.Alive(t.Context(), "claude-bottle-calls-none"); alive || err != nil {
		t.Errorf("without a container: %v, %v", alive, err)
	}
}
