package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"
)

// The end of a process is not the end of its output: its last writes are still in
// pipes, and a surviving child may hold those pipes open, or write to them,
// indefinitely.
const (
	// drainIdle is the time without output after which it is considered complete.
	drainIdle = 2 * time.Second
	// drainBytes is more than the pipes between a process and us can hold (by
	// default at most 1 MiB each; pipe(7)): output beyond it was written after the
	// process ended.
	drainBytes = 4 << 20
)

// outputMonitor tracks the output of one session.
type outputMonitor struct {
	mu      sync.Mutex
	writing int       // writes in progress
	bytes   int64     // bytes written
	last    time.Time // of the last start or end of a write

	started chan struct{} // closed when the start has succeeded or failed
	unused  bool          // the start has failed; set before started is closed
	failed  chan struct{} // closed after the first failed write
	err     error         // of that write
}

func newOutputMonitor() *outputMonitor {
	return &outputMonitor{started: make(chan struct{}), failed: make(chan struct{})}
}

// start lets output pass, or discards it if the start of the process has failed.
func (m *outputMonitor) start(err error) {
	m.unused = err != nil
	close(m.started)
}

// wrap returns a writer that passes writes to the stream called name on to w and
// records them.
func (m *outputMonitor) wrap(name string, w io.Writer) io.Writer {
	if w == nil {
		return nil
	}
	return &monitoredWriter{m, name, w}
}

type monitoredWriter struct {
	m    *outputMonitor
	name string
	w    io.Writer
}

// Write discards everything after a failed write: if nobody read the pipe any more,
// the process would wait for a reader and its end would never be noticed. For the same
// reason it discards what a process writes whose start is reported as failed, for example
// because containerd was killed: its output may not have a reader yet.
func (w *monitoredWriter) Write(p []byte) (int, error) {
	<-w.m.started
	if w.m.unused || w.m.failure() != nil {
		return len(p), nil //nolint:nilerr // the failure was reported when it happened
	}
	w.m.record(1, 0)
	n, err := w.w.Write(p)
	w.m.record(-1, n)
	if err != nil {
		w.m.fail(w.name, err)
	}
	return len(p), nil
}

// fail records the first failed write, without the path of the caller's file.
func (m *outputMonitor) fail(name string, err error) {
	if perr := (*fs.PathError)(nil); errors.As(err, &perr) {
		err = perr.Err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.err = fmt.Errorf("write %s: %w", name, err)
		close(m.failed)
	}
}

// failure returns the error of the first failed write, or nil.
func (m *outputMonitor) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

func (m *outputMonitor) record(writing, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writing += writing
	m.bytes += int64(n)
	m.last = time.Now()
}

func (m *outputMonitor) state() (idle time.Duration, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.writing > 0 {
		return 0, m.bytes // a slow reader, such as a pager, must not lose output
	}
	return time.Since(m.last), m.bytes
}

// drain waits for the rest of the output of a process that has ended: until done
// is closed, nothing was written for drainIdle, or more was written than the
// process itself can have left in the pipes.
func (m *outputMonitor) drain(done <-chan struct{}) {
	m.record(0, 0)
	_, before := m.state()
	tick := time.NewTicker(drainIdle / 20)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if idle, n := m.state(); idle >= drainIdle || n-before > drainBytes {
				return
			}
		}
	}
}
