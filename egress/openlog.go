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

// Log reads what KeepLog has written, the oldest lines first. It is an
// io.ReadCloser.
type Log struct {
	ctx   context.Context
	path  string
	file  *os.File
	watch *fsnotify.Watcher // nil: its end is the end
}

// OpenLog opens the log at path; one that does not exist is empty. With follow,
// reading waits at the end for more, until ctx ends or the log's folder is gone.
func OpenLog(ctx context.Context, path string, follow bool) (*Log, error) {
	l := &Log{ctx: ctx, path: path}
	if follow {
		w, err := fsnotify.NewWatcher()
		if err != nil {
			return nil, fmt.Errorf("follow the log: %w", err)
		}
		// Before the first read, so that nothing comes unseen.
		if err := w.Add(filepath.Dir(path)); err != nil {
			return nil, errors.Join(fmt.Errorf("follow the log: %w", err), w.Close())
		}
		l.watch = w
	}
	return l, nil
}

// SkipToEnd leaves out what the log holds now.
func (l *Log) SkipToEnd() error {
	opened, err := l.open(l.path)
	if err != nil || !opened {
		return err
	}
	if _, err := l.file.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("read the egress log: %w", err)
	}
	return nil
}

// Read implements io.Reader.
func (l *Log) Read(p []byte) (int, error) {
	for {
		if l.file != nil {
			// Rotated before the end is met, a file gets no more after it.
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
		if err := l.more(); err != nil {
			return 0, err
		}
	}
}

// followTick is how often a follower looks for itself whether there is still a log.
const followTick = time.Second

// more waits for something to happen in the log's folder; io.EOF is that there
// is nothing to wait for.
func (l *Log) more() error {
	if l.watch == nil {
		return io.EOF
	}
	if _, err := os.Stat(filepath.Dir(l.path)); err != nil {
		return io.EOF
	}
	select {
	case <-l.ctx.Done():
		return io.EOF
	case _, ok := <-l.watch.Events:
		if !ok {
			return io.EOF
		}
		return nil
	case <-time.After(followTick):
		return nil // the end of the folder itself is not always told
	case err := <-l.watch.Errors:
		if errors.Is(err, fsnotify.ErrEventOverflow) {
			return nil // something happened, then
		}
		return err
	}
}

func (l *Log) oldest() string {
	for i := oldLogFiles; i > 0; i-- {
		if _, err := os.Stat(oldLog(l.path, i)); err == nil {
			return oldLog(l.path, i)
		}
	}
	return l.path
}

// rotated gives the file that comes after the one that is read, if that one has
// been rotated away; nothing otherwise.
func (l *Log) rotated() (string, error) {
	mine, err := l.file.Stat()
	if err != nil {
		return "", err
	}
	for i := range oldLogFiles + 1 {
		fi, err := os.Stat(oldLog(l.path, i))
		if err != nil || !os.SameFile(mine, fi) {
			continue
		}
		if i == 0 {
			return "", nil
		}
		return oldLog(l.path, i-1), nil
	}
	// So long ago that it is gone itself.
	if _, err := os.Stat(l.path); err != nil {
		return "", nil //nolint:nilerr // all of the log is gone: more tells
	}
	return l.oldest(), nil
}

// open goes on with another file, if it is there yet.
func (l *Log) open(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the egress log: %w", err)
	}
	if l.file != nil {
		_ = l.file.Close() // read only
	}
	l.file = f
	return true, nil
}

// Close ends the reading.
func (l *Log) Close() error {
	var err error
	if l.file != nil {
		err = l.file.Close()
	}
	if l.watch != nil {
		err = errors.Join(err, l.watch.Close())
	}
	return err
}
