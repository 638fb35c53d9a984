package buildkit

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
)

// quietTime is how long a build may check its cache before progress is shown.
const quietTime = 5 * time.Second

// display returns a function that shows a build's progress until the channel is
// closed.
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
		// Drain the channel even if the build is cancelled.
		_, err := d.UpdateFrom(context.Background(), status)
		return err
	}
	if !r.QuietIfCached {
		return show, nil
	}
	return func(status chan *client.SolveStatus) error {
		late := time.NewTimer(quietTime)
		defer late.Stop()
		return showExecuted(status, late.C, show)
	}, nil
}

// showExecuted buffers a build's progress until a step is executed or late fires. If
// everything is cached, nothing is shown.
func showExecuted(status chan *client.SolveStatus, late <-chan time.Time, show func(chan *client.SolveStatus) error) error {
	var held []*client.SolveStatus
	for started := false; !started; {
		select {
		case s, more := <-status:
			if !more {
				return nil
			}
			held = append(held, s)
			started = executes(s)
		case <-late:
			started = true
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

// executes reports whether a step is executed or data is fetched. Steps without
// inputs, which load the context and resolve base images, are executed every time and
// do not count.
func executes(s *client.SolveStatus) bool {
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
