// Package drain waits for the rest of the output of a process that has ended.
package drain

import (
	"sync"
	"time"
)

// The end of a process is not the end of its output: its last writes are still in
// pipes, and a surviving child may hold those pipes open, or write to them,
// indefinitely.
const (
	// idleTime is the time without output after which it is considered complete.
	idleTime = 2 * time.Second
	// pipeBytes is more than the pipes between a process and us can hold (by
	// default at most 1 MiB each; pipe(7)): output beyond it was written after the
	// process ended.
	pipeBytes = 4 << 20
)

// Meter observes the writes that pass the output on.
type Meter struct {
	mu      sync.Mutex
	writing int       // writes in progress
	bytes   int64     // bytes written
	last    time.Time // of the last start or end of a write
}

// Begin records the beginning of a write.
func (m *Meter) Begin() { m.record(1, 0) }

// End records the end of a write of n bytes.
func (m *Meter) End(n int) { m.record(-1, n) }

func (m *Meter) record(writing, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writing += writing
	m.bytes += int64(n)
	m.last = time.Now()
}

func (m *Meter) state() (idle time.Duration, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writing > 0 {
		return 0, m.bytes // a slow reader, such as a pager, must not lose output
	}
	return time.Since(m.last), m.bytes
}

// Drain waits for the rest of the output of a process that has ended: until done
// is closed, nothing was written for idleTime, or more was written than the
// process itself can have left in the pipes.
func (m *Meter) Drain(done <-chan struct{}) {
	select {
	case <-done:
		return
	default:
	}
	m.record(0, 0)
	_, before := m.state()
	tick := time.NewTicker(idleTime / 20)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if idle, n := m.state(); idle >= idleTime || n-before > pipeBytes {
				return
			}
		}
	}
}
