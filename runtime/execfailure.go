package runtime

import (
	"bytes"
	"io"
	"sync"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// When a sandbox is killed, `runsc exec` of each of its sessions prints this line to
// the session's own output, and exits with execFailed.
var execFailure = lazyregexp.New(`^waiting on pid \d+: waiting on PID \d+ in sandbox "[^"\n]*": urpc method "[^"\n]*" failed: [^\n]*\n$`)

const (
	execFailurePrefix = "waiting on pid "
	execFailed        = 128
)

// failureFilter withholds such a line at the end of a session's output.
type failureFilter struct {
	name string // of the stream, for errors
	mu   sync.Mutex
	w    io.Writer
	held []byte
}

func (f *failureFilter) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.flush(); err != nil {
		return 0, err
	}
	keep := len(p)
	if i := bytes.LastIndex(p, []byte(execFailurePrefix)); i >= 0 && execFailure().Match(p[i:]) {
		keep = i
	}
	f.held = bytes.Clone(p[keep:])
	if keep == 0 {
		return len(p), nil
	}
	if n, err := f.w.Write(p[:keep]); err != nil {
		return n, err
	}
	return len(p), nil
}

func (f *failureFilter) flush() error {
	if len(f.held) == 0 {
		return nil
	}
	held := f.held
	f.held = nil
	_, err := f.w.Write(held)
	return err
}

// holds reports whether the output ends with a withheld line.
func (f *failureFilter) holds() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.held) > 0
}

// close writes or discards a withheld line at the end of the output.
func (f *failureFilter) close(discard bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if discard {
		f.held = nil
	}
	return f.flush()
}
