package egress

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A display reads at most 100 lines of a log before it pauses, however many there are,
// and continues with what is logged afterwards. The control reads the same log to its end.
func TestSampleLog(t *testing.T) {
	const flood = 1000
	dir := filepath.Join(t.TempDir(), "bottle")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "egress.log")
	k, err := openLogFile(path, maxLogSize)
	if err != nil {
		t.Fatal(err)
	}
	write := func(from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			if err := k.write([]byte(logLine(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	write(0, 1) // before the display: it does not show what is old
	read, pauses, resume, ended := make(chan string), make(chan int), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		n := 0
		for e, err := range sampleLog(t.Context(), path, func() { pauses <- n; <-resume }) {
			if err != nil {
				t.Error(err)
				return
			}
			if n++; n == 1 || n > sampleLines {
				read <- e.Target
			}
		}
	}()
	// The display has opened the log when it yields an entry.
	next := 1
	for first := ""; first == ""; next++ {
		write(next, next+1)
		select {
		case first = <-read:
		default:
		}
	}
	end := next + flood
	write(next, end)
	if n := <-pauses; n != sampleLines {
		t.Errorf("%d lines were read before the pause, want %d", n, sampleLines)
	}
	resume <- struct{}{}
	last := ""
	for i := end; last == ""; i++ {
		write(i, i+1)
		select {
		case last = <-read:
		default:
		}
	}
	var n int
	if _, err := fmt.Sscanf(last, "host%d.test", &n); err != nil || n < end {
		t.Errorf("after the pause it read %q (%v), which was logged before its end", last, err)
	}
	if all := len(readAll(t, path)); all < flood {
		t.Errorf("the control read %d lines, want at least %d", all, flood)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case <-read:
		case <-pauses:
			resume <- struct{}{}
		case <-ended:
			return
		}
	}
}
