package egress

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"
)

// Bounds of a bottle's log on disk: the current file and rotated ones, of which
// PATH.1 is the newest.
const (
	maxLogSize   = 4 << 20 // bytes
	rotatedFiles = 3
)

// retryInterval is the time between attempts to write a line. The proxy blocks
// meanwhile: a request that cannot be logged is not served.
const retryInterval = time.Second

// KeepLog writes the lines of several streams to the file at path until all
// streams have ended, with secrets masked, and rotates the file to bound its
// size. A write that fails is retried until it succeeds, or until stop receives
// a value.
func KeepLog(path string, stop <-chan os.Signal, streams ...io.Reader) error {
	k, err := openLogFile(path, maxLogSize)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(streams))
	for i, r := range streams {
		wg.Go(func() { errs[i] = k.keep(r, stop) })
	}
	wg.Wait()
	return errors.Join(append(errs, k.file.Close())...)
}

// LogProxyEnd appends a line about the end of a proxy to its log at path. It must be
// called while the proxy is not running. The line is not counted towards the size of the
// file by a KeepLog that has it open, so the caller must bound the number of calls.
func LogProxyEnd(path, reason string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open proxy log: %w", err)
	}
	newLogger(f).log(line{Event: EventProxyLimit, Target: proxyTarget, Reason: reason})
	return f.Close()
}

// proxyTarget is the target of an entry that is about the proxy itself.
const proxyTarget = "(the proxy)"

// logFile is a log file that is rotated when it reaches its maximum size.
type logFile struct {
	path    string
	maxSize int64

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLogFile(path string, maxSize int64) (*logFile, error) {
	k := &logFile{path: path, maxSize: maxSize}
	return k, k.open()
}

func (k *logFile) open() error {
	f, err := os.OpenFile(k.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open proxy log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open proxy log: %w", err), f.Close())
	}
	k.file, k.size = f, fi.Size()
	return nil
}

func (k *logFile) keep(r io.Reader, stop <-chan os.Signal) error {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := readMasked(br)
		for len(line) > 0 {
			werr := k.write(line)
			if werr == nil {
				break
			}
			select {
			case <-stop:
				return fmt.Errorf("write proxy log: %w", werr)
			case <-time.After(retryInterval):
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("read proxy output: %w", err)
		}
	}
}

// readMasked returns the next line with secrets masked and unprintable characters
// escaped. A line longer than readers of the log accept is truncated.
func readMasked(br *bufio.Reader) ([]byte, error) {
	text, err := br.ReadSlice('\n')
	if len(text) == 0 {
		return nil, err
	}
	line := append(escapeLine(maskLine(bytes.TrimRight(text, "\n"))), '\n')
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = br.ReadSlice('\n')
	}
	return line, err
}

// write appends a complete line, or nothing.
func (k *logFile) write(line []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.size > 0 && k.size+int64(len(line)) > k.maxSize {
		if err := k.rotate(); err != nil {
			return err
		}
	}
	n, err := k.file.Write(line)
	if err != nil {
		// A partial line would be joined with the next one.
		return errors.Join(err, k.file.Truncate(k.size))
	}
	k.size += int64(n)
	return nil
}

func (k *logFile) rotate() error {
	for i := rotatedFiles; i > 0; i-- {
		err := os.Rename(rotatedPath(k.path, i-1), rotatedPath(k.path, i))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	old := k.file
	if err := k.open(); err != nil {
		return err
	}
	return old.Close()
}

// rotatedPath returns the path of the log file that was rotated i times.
func rotatedPath(path string, i int) string {
	if i == 0 {
		return path
	}
	return path + "." + strconv.Itoa(i)
}
