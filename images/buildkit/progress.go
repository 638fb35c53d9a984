package buildkit

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
)

// patience is how long a build may look whether there is something to do before
// that is shown, too.
const patience = 5 * time.Second

// display returns what shows a build's progress until the channel is closed.
func (r Request) display() (func(chan *client.SolveStatus) error, error) {
	out := r.Out
	if out == nil {
		out = io.Discard
	}
	d, err := progressui.NewDisplay(out, progressui.DisplayMode(r.Progress))
	if err != nil {
		return nil, fmt.Errorf("show progress as %q: %w", r.Progress, err)
	}
	show := func(status chan *client.SolveStatus) error {
		// To the channel's end, whatever becomes of the build.
		_, err := d.UpdateFrom(context.Background(), status)
		return err
	}
	if !r.OnlyWork {
		return show, nil
	}
	return func(status chan *client.SolveStatus) error {
		late := time.NewTimer(patience)
		defer late.Stop()
		return showWork(status, late.C, show)
	}, nil
}

// showWork holds a build's progress back until there is work in it, or it is
// late; of a build that finds all in the cache nothing is shown.
func showWork(status chan *client.SolveStatus, late <-chan time.Time, show func(chan *client.SolveStatus) error) error {
	var held []*client.SolveStatus
	for began := false; !began; {
		select {
		case s, more := <-status:
			if !more {
				return nil
			}
			held = append(held, s)
			began = works(s)
		case <-late:
			began = true
		}
	}
	out := make(chan *client.SolveStatus)
	done := make(chan error, 1)
	go func() { done <- show(out) }()
	for _, s := range held {
		out <- s
	}
	for s := range status {
		out <- s
	}
	close(out)
	return <-done
}

// works tells whether a step runs or something is fetched. What a step of no
// inputs does, BuildKit does each time: to look at the context and the base image.
func works(s *client.SolveStatus) bool {
	for _, v := range s.Vertexes {
		if v.Started != nil && !v.Cached && len(v.Inputs) > 0 {
			return true
		}
	}
	for _, st := range s.Statuses {
		if st.Current < st.Total {
			return true
		}
	}
	return false
}
