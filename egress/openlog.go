package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Log reads a log written by [KeepLog], oldest lines first. It is an
// io.ReadCloser.
type Log struct {
	ctx   context.Context
	path  string
	file  *os.File
	watch *fsnotify.Watcher // nil: do not follow
	atEnd func()            // if set, called before each wait for more lines
}

// OpenLog opens the log at path. A missing log is empty. With follow, reads wait
// at the end for more lines until ctx ends or the log's directory is removed.
func OpenLog(ctx context.Context, path string, follow bool) (*Log, error) {
	l := &Log{ctx: ctx, path: path}
	if follow {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			return nil, fmt.Errorf("follow egress log: %w", err)
		}
		// Watch before the first read, so that no change is missed.
		if err := w.Add(filepath.Dir(path)); err != nil {
			return nil, errors.Join(fmt.Errorf("follow egress log: %w", err), w.Close())
		}
		l.watch = w
	}
	return l, nil
}

// SkipToEnd skips the lines that the log contains now.
func (l *Log) SkipToEnd() error {
	opened, err := l.open(l.path)
	if err != nil || !opened {
		return err
	}
	if _, err := l.file.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("read egress log: %w", err)
	}
	return nil
}

// Read implements io.Reader.
func (l *Log) Read(p []byte) (int, error) {
	for {
		if l.file != nil {
			// Check for rotation first: a file that was rotated before its end
			// is reached gets no more lines.
			next, rerr := l.rotated()
			n, err := l.file.Read(p)
			if n > 0 || !errors.Is(err, io.EOF) {
				return n, err
			}
			if rerr != nil {
				return 0, rerr
			}
			if next != "" {
				opened, err := l.open(next)
				if err != nil {
					return 0, err
				}
				if opened {
					continue
				}
			}
		} else if opened, err := l.open(l.oldest()); err != nil {
			return 0, err
		} else if opened {
			continue
		}
		if err := l.waitChange(); err != nil {
			return 0, err
		}
	}
}

// followInterval is how often a follower checks that the log still exists.
const followInterval = time.Second

// waitChange waits for a change in the log's directory. It returns io.EOF if
// there is nothing to wait for.
func (l *Log) waitChange() error {
	if l.watch == nil {
		return io.EOF
	}
	if _, err := os.Stat(filepath.Dir(l.path)); err != nil {
		return io.EOF
	}
	if l.atEnd != nil {
		l.atEnd()
	}
	select {
	case <-l.ctx.Done():
		return io.EOF
	case _, ok := <-l.watch.Events:
		if !ok {
			return io.EOF
		}
		return nil
	case <-time.After(followInterval):
		return nil // removal of the watched directory is not always reported
	case err := <-l.watch.Errors:
		if errors.Is(err, fsnotify.ErrEventOverflow) {
			return nil // there was a change
		}
		return err
	}
}

func (l *Log) oldest() string {
	for i := rotatedFiles; i > 0; i-- {
		if _, err := os.Stat(rotatedPath(l.path, i)); err == nil {
			return rotatedPath(l.path, i)
		}
	}
	return l.path
}

// rotated returns the path of the file that follows the open one, if the open
// one has been rotated; "" otherwise.
func (l *Log) rotated() (string, error) {
	current, err := l.file.Stat()
	if err != nil {
		return "", err
	}
	for i := range rotatedFiles + 1 {
		fi, err := os.Stat(rotatedPath(l.path, i))
		if err != nil || !os.SameFile(current, fi) {
			continue
		}
		if i == 0 {
			return "", nil
		}
		return rotatedPath(l.path, i-1), nil
	}
	// The open file has been rotated out and removed.
	if _, err := os.Stat(l.path); err != nil {
		return "", nil //nolint:nilerr // the log was removed: waitChange detects it
	}
	return l.oldest(), nil
}

// open continues with another file, if it exists.
func (l *Log) open(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read egress log: %w", err)
	}
	if l.file != nil {
		_ = l.file.Close() // read only
	}
	l.file = f
	return true, nil
}

// Close closes the log. The kernel ends a watch only after a grace period, of up to some
// 20 ms, for which the caller does not wait.
func (l *Log) Close() error {
	if l.watch != nil {
		go func() { _ = l.watch.Close() }() // it always closes
	}
	if l.file != nil {
		return l.file.Close()
	}
	return nil
}
