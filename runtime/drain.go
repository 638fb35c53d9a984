package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"

	"github.com/bot-bottle/bottle/internal/drain"
)

// outputMonitor tracks the output of one session.
type outputMonitor struct {
	drain.Meter
	mu sync.Mutex

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
	w.m.Begin()
	n, err := w.w.Write(p)
	w.m.End(n)
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
