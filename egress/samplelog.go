package egress

import (
	"bufio"
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// sampleLines is how many lines a sample reads before it pauses.
const sampleLines = 100

// SampleLog yields new entries of the log at path until ctx ends or the log's directory
// is removed. Unlike a log that is followed to its end, it takes little CPU time however
// fast the log grows: after every 100 lines it waits for pause and skips what was logged
// meanwhile. It is for a display that can only show some of the entries.
func SampleLog(ctx context.Context, path string, pause time.Duration) iter.Seq2[Entry, error] {
	return sampleLog(ctx, path, func() {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	})
}

func sampleLog(ctx context.Context, path string, wait func()) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		log, err := OpenLog(ctx, path, true)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer func() { _ = log.Close() }() // read only
		br := bufio.NewReaderSize(log, maxLine)
		for n := 0; ; n++ {
			if n%sampleLines == 0 {
				if n > 0 {
					wait()
				}
				if err := log.SkipToEnd(); err != nil {
					yield(Entry{}, err)
					return
				}
				br.Reset(log)
			}
			text, err := readLine(br)
			if e, ok := parseEntry(text); ok && !yield(e, nil) {
				return
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					yield(Entry{}, err)
				}
				return
			}
		}
	}
}
