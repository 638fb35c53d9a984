package runtime

import (
	"io"
	"sync"
	"time"
)

// The end of a process is not the end of its output: what it wrote last is still
// in pipes, and a child of it that lives on may hold those open, or write to
// them, for as long as it likes.
const (
	// drainTime is how long nothing may come before that is taken for the end.
	drainTime = 2 * time.Second
	// drainBytes is more than the pipes between a process and us can hold (at
	// most 1 MiB each, by default; pipe(7)): what comes beyond it was written
	// after the process's end.
	drainBytes = 4 << 20
)

// flow watches the output of one session. The zero value is ready.
type flow struct {
	mu      sync.Mutex
	writing int       // writes that their reader has not taken yet
	bytes   int64     // taken
	last    time.Time // when something came or was taken
}

// watch returns a writer that passes everything on to w and is seen by f.
func (f *flow) watch(w io.Writer) io.Writer {
	if w == nil {
		return nil
	}
	return &watchedWriter{f, w}
}

type watchedWriter struct {
	f *flow
	w io.Writer
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	w.f.note(1, 0)
	n, err := w.w.Write(p)
	w.f.note(-1, n)
	return n, err
}

func (f *flow) note(writing, n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writing += writing
	f.bytes += int64(n)
	f.last = time.Now()
}

func (f *flow) look() (idle time.Duration, bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.writing > 0 {
		return 0, f.bytes // a slow reader, a pager perhaps: nothing is lost on him
	}
	return time.Since(f.last), f.bytes
}

// drain waits until all output has been taken: until done is closed, or nothing
// has come for drainTime, or so much that the ended process cannot have written
// it. It is called once the process has ended.
func (f *flow) drain(done <-chan struct{}) {
	f.note(0, 0)
	_, before := f.look()
	tick := time.NewTicker(drainTime / 20)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			if idle, n := f.look(); idle >= drainTime || n-before > drainBytes {
				return
			}
		}
	}
}
