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

// TestShowExecuted: events before the first executed step are shown with it, in
// order. If nothing is executed, nothing is shown unless it takes long.
func TestShowExecuted(t *testing.T) {
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
		events []*client.SolveStatus
		pause  time.Duration // before the last
		shown  bool
	}{
		"nothing":       {},
		"all is cached": {events: []*client.SolveStatus{look, waits, fetched, cached}},
		"a step":        {events: []*client.SolveStatus{look, waits, runs, cached}, shown: true},
		"a fetch":       {events: []*client.SolveStatus{look, fetches}, shown: true},
		"in time":       {events: []*client.SolveStatus{look, cached}, pause: quietTime - time.Second},
		"late":          {events: []*client.SolveStatus{look, cached}, pause: quietTime + time.Second, shown: true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				status := make(chan *client.SolveStatus)
				go func() {
					defer close(status)
					for i, s := range c.events {
						if i == len(c.events)-1 {
							time.Sleep(c.pause)
						}
						status <- s
					}
				}()
				var got []*client.SolveStatus
				shown := false
				err := showExecuted(status, time.After(quietTime), func(out chan *client.SolveStatus) error {
					shown = true
					for s := range out {
						got = append(got, s)
					}
					return nil
				})
				if err != nil || shown != c.shown || shown && !slices.Equal(got, c.events) {
					t.Errorf("shown: %v, %d of %d, %v", shown, len(got), len(c.events), err)
				}
			})
		})
	}
}

// TestQuietIfCached: BuildKit's real events of a build with a change and of a build
// without one.
func TestQuietIfCached(t *testing.T) {
	b := newBuilder(t)
	b.write("Dockerfile", "FROM bottle-demo:latest\nCOPY given /given\nRUN echo ran\n")
	req := Request{Names: []string{b.ref()}, QuietIfCached: true}
	for _, change := range []string{"one", "two"} {
		b.write("given", change)
		b.good(req)
		if !strings.Contains(b.log.String(), "load build definition") || !strings.Contains(b.log.String(), "RUN echo ran") {
			t.Errorf("output of a build with a change:\n%s", b.log.String())
		}
		b.good(req)
		if b.log.Len() > 0 {
			t.Errorf("output of a build without changes:\n%s", b.log.String())
		}
	}
}
