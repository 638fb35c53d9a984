package buildkit

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

// TestShowWork: what was told before work began is shown with it, in its order;
// without work nothing is, unless it takes long.
func TestShowWork(t *testing.T) {
	now := time.Now()
	vertex := func(v client.Vertex) *client.SolveStatus {
		return &client.SolveStatus{Vertexes: []*client.Vertex{&v}}
	}
	inputs := []digest.Digest{"sha256:0"}
	look := vertex(client.Vertex{Name: "look", Started: &now})
	waits := vertex(client.Vertex{Name: "waits", Inputs: inputs})
	cached := vertex(client.Vertex{Name: "cached", Inputs: inputs, Started: &now, Cached: true})
	runs := vertex(client.Vertex{Name: "runs", Inputs: inputs, Started: &now})
	fetches := &client.SolveStatus{Statuses: []*client.VertexStatus{{ID: "sha256:0", Current: 1, Total: 2}}}
	fetched := &client.SolveStatus{Statuses: []*client.VertexStatus{{ID: "sha256:0", Current: 2, Total: 2}, {ID: "transferring context:", Current: 2}}}
	for name, c := range map[string]struct {
		told  []*client.SolveStatus
		pause time.Duration // before the last
		shown bool
	}{
		"nothing":       {},
		"all is cached": {told: []*client.SolveStatus{look, waits, fetched, cached}},
		"a step":        {told: []*client.SolveStatus{look, waits, runs, cached}, shown: true},
		"a fetch":       {told: []*client.SolveStatus{look, fetches}, shown: true},
		"in time":       {told: []*client.SolveStatus{look, cached}, pause: patience - time.Second},
		"late":          {told: []*client.SolveStatus{look, cached}, pause: patience + time.Second, shown: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				status := make(chan *client.SolveStatus)
				go func() {
					defer close(status)
					for i, s := range c.told {
						if i == len(c.told)-1 {
							time.Sleep(c.pause)
						}
						status <- s
					}
				}()
				var got []*client.SolveStatus
				shown := false
				err := showWork(status, time.After(patience), func(out chan *client.SolveStatus) error {
					shown = true
					for s := range out {
						got = append(got, s)
					}
					return nil
				})
				if err != nil || shown != c.shown || shown && !slices.Equal(got, c.told) {
					t.Errorf("shown: %v, %d of %d, %v", shown, len(got), len(c.told), err)
				}
			})
		})
	}
}

// TestOnlyWork: BuildKit's own account of a build in which something has changed,
// and of one in which nothing has.
func TestOnlyWork(t *testing.T) {
	b := newBench(t)
	b.write("Dockerfile", "FROM bottle-demo:latest\nCOPY given /given\nRUN echo ran\n")
	req := Request{Names: []string{b.ref()}, OnlyWork: true}
	for _, change := range []string{"one", "two"} {
		b.write("given", change)
		b.good(req)
		if !strings.Contains(b.log.String(), "load build definition") || !strings.Contains(b.log.String(), "RUN echo ran") {
			t.Errorf("a build that works shows:\n%s", b.log.String())
		}
		b.good(req)
		if b.log.Len() > 0 {
			t.Errorf("a build of nothing new shows:\n%s", b.log.String())
		}
	}
}
