package egress

import (
	"context"
	"iter"
	"sync"
)

// MergeLogs yields the entries of several logs in the order of their times, each log's
// own order kept. A missing log is empty. With follow it continues with new entries, as
// they arrive, until ctx ends or the directory of a log is removed. An error is yielded
// last.
func MergeLogs(ctx context.Context, follow bool, paths ...string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		m := merge{arrived: make(chan arrival), sources: make([]source, len(paths))}
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		for i, path := range paths {
			m.sources[i].resume = make(chan struct{}, 1)
			wg.Go(func() { m.read(ctx, i, path, follow) })
		}
		m.yieldAll(ctx, yield)
	}
}

// merge reads several logs concurrently. Each reader holds one entry until it is yielded.
type merge struct {
	arrived chan arrival
	sources []source
}

// arrival is what a reader reports: an entry, an error, that it waits at the log's end,
// or that it has ended.
type arrival struct {
	source int
	state  sourceState
	entry  Entry
	err    error
}

type source struct {
	arrival
	resume chan struct{}
}

type sourceState int

const (
	reading sourceState = iota // an entry may arrive that is older than others' entries
	holding                    // an entry
	waiting                    // at the end of the log
	ended
)

// read reports the entries of one log.
func (m *merge) read(ctx context.Context, i int, path string, follow bool) {
	report := func(a arrival) bool {
		a.source = i
		select {
		case m.arrived <- a:
			return true
		case <-ctx.Done():
			return false
		}
	}
	log, err := OpenLog(ctx, path, follow)
	if err != nil {
		report(arrival{state: ended, err: err})
		return
	}
	defer func() { _ = log.Close() }() // read only
	log.atEnd = func() { report(arrival{state: waiting}) }
	for entry, err := range ParseLog(log) {
		if err != nil {
			report(arrival{state: ended, err: err})
			return
		}
		if !report(arrival{state: holding, entry: entry}) {
			return
		}
		select {
		case <-m.sources[i].resume:
		case <-ctx.Done():
			return
		}
	}
	report(arrival{state: ended})
}

func (m *merge) yieldAll(ctx context.Context, yield func(Entry, error) bool) {
	for {
		next := m.next()
		if next == nil {
			if m.all(ended) {
				return
			}
			select {
			case a := <-m.arrived:
				if a.err != nil {
					yield(Entry{}, a.err)
					return
				}
				m.sources[a.source].arrival = a
			case <-ctx.Done():
				return
			}
			continue
		}
		if !yield(next.entry, nil) {
			return
		}
		next.state = reading
		next.resume <- struct{}{}
	}
}

// next returns the source with the oldest entry, or nil while an older one may arrive or
// there is none.
func (m *merge) next() *source {
	var oldest *source
	for i := range m.sources {
		s := &m.sources[i]
		switch {
		case s.state == reading:
			return nil
		case s.state == holding && (oldest == nil || s.entry.Time.Before(oldest.entry.Time)):
			oldest = s
		}
	}
	return oldest
}

func (m *merge) all(state sourceState) bool {
	for i := range m.sources {
		if m.sources[i].state != state {
			return false
		}
	}
	return true
}
