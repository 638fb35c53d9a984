// Package timing measures the steps of a bottle's life.
package timing

import (
	"sync"
	"time"
)

// StepTime is how long one step took. Steps may overlap.
type StepTime struct {
	Step  string        `json:"step"`
	Begin time.Duration `json:"begin_ns"` // since the first step
	Took  time.Duration `json:"took_ns"`
}

// Timings collects step times; its zero value is ready to use.
type Timings struct {
	mu    sync.Mutex
	start time.Time
	steps []StepTime
}

// Begin starts a step and returns the function that ends it.
func (t *Timings) Begin(step string) (end func()) {
	now := time.Now()
	t.mu.Lock()
	if t.start.IsZero() {
		t.start = now
	}
	offset := now.Sub(t.start)
	t.mu.Unlock()
	return func() {
		took := time.Since(now)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.steps = append(t.steps, StepTime{Step: step, Begin: offset, Took: took})
	}
}

// Steps returns the finished steps in the order in which they ended.
func (t *Timings) Steps() []StepTime {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]StepTime(nil), t.steps...)
}
