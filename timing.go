package bottle

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

// begin starts a step and returns what ends it.
func (t *Timings) begin(step string) (end func()) {
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

// Steps returns the steps that have ended, in the order of their ends.
func (t *Timings) Steps() []StepTime {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]StepTime(nil), t.steps...)
}
