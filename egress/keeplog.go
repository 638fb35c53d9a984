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

// Bounds of a bottle's log on disk: the file that is written, and older ones
// that were that, PATH.1 the youngest.
const (
	maxLogFile  = 4 << 20 // bytes
	oldLogFiles = 3
)

// retryEvery is how often a line is tried again that could not be written. The
// proxy waits meanwhile: what cannot be logged does not happen.
const retryEvery = time.Second

// KeepLog writes the lines of several streams to the file at path until all
// streams have ended, a line at a time, with secrets in them masked, and keeps
// the log bounded. The end of stop makes it give up what it cannot write.
func KeepLog(path string, stop <-chan os.Signal, streams ...io.Reader) error {
	k, err := openKeeper(path, maxLogFile)
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

// keeper is a log that is being written.
type keeper struct {
	path string
	most int64

	mu   sync.Mutex
	file *os.File
	size int64
}

func openKeeper(path string, most int64) (*keeper, error) {
	k := &keeper{path: path, most: most}
	return k, k.open()
}

func (k *keeper) open() error {
	f, err := os.OpenFile(k.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the proxy's log: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open the proxy's log: %w", err), f.Close())
	}
	k.file, k.size = f, fi.Size()
	return nil
}

func (k *keeper) keep(r io.Reader, stop <-chan os.Signal) error {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := keptLine(br)
		for len(line) > 0 {
			werr := k.write(line)
			if werr == nil {
				break
			}
			select {
			case <-stop:
				return fmt.Errorf("write the proxy's log: %w", werr)
			case <-time.After(retryEvery):
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("read what the proxy logs: %w", err)
		}
	}
}

// keptLine is the next line as it is kept. One that is longer than a reader of the
// log takes is broken off.
func keptLine(br *bufio.Reader) ([]byte, error) {
	text, err := br.ReadSlice('\n')
	if len(text) == 0 {
		return nil, err
	}
	line := append(maskLine(bytes.TrimRight(text, "\n")), '\n')
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = br.ReadSlice('\n')
	}
	return line, err
}

// write appends a line, whole or not at all.
func (k *keeper) write(line []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.size > 0 && k.size+int64(len(line)) > k.most {
		if err := k.rotate(); err != nil {
			return err
		}
	}
	n, err := k.file.Write(line)
	if err != nil {
		// A part would run into the next line.
		return errors.Join(err, k.file.Truncate(k.size))
	}
	k.size += int64(n)
	return nil
}

func (k *keeper) rotate() error {
	for i := oldLogFiles; i > 0; i-- {
		err := os.Rename(oldLog(k.path, i-1), oldLog(k.path, i))
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

// oldLog is the name of the log's file that was rotated i times.
func oldLog(path string, i int) string {
	if i == 0 {
		return path
	}
	return path + "." + strconv.Itoa(i)
}
