package runtime

import (
	"errors"
	"io"
	"testing"
)

// TestOutputOfFailedStart: the output of a process whose start is reported as failed does
// not wait for a reader, which may not exist yet. In the control it arrives.
func TestOutputOfFailedStart(t *testing.T) {
	for _, err := range []error{errors.New("containerd was killed"), nil} {
		m := newOutputMonitor()
		r, w := io.Pipe()
		written := make(chan error, 1)
		out := m.wrap("stdout", w)
		go func() {
			_, werr := out.Write([]byte("hello"))
			written <- werr
		}()
		m.start(err)
		if err == nil {
			b := make([]byte, 5)
			if _, rerr := io.ReadFull(r, b); rerr != nil || string(b) != "hello" {
				t.Errorf("read %q, %v", b, rerr)
			}
		}
		if werr := <-written; werr != nil {
			t.Error(werr)
		}
	}
}
