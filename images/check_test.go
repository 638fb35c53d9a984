package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// TestManyLinks has a layer of links without end, all of which would have to be
// kept.
func TestManyLinks(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		to := tar.NewWriter(w)
		target := strings.Repeat("long/", 800)
		for i := 0; ; i++ {
			if to.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprint(i), Linkname: target}) != nil {
				return // nobody reads any more
			}
		}
	}()
	err := checkEntries(context.Background(), r)
	if err == nil || !strings.Contains(err.Error(), "more symbolic links") {
		t.Errorf("got %v", err)
	}
	_ = r.Close()
}

// endless is a layer with one file that is as long as a tar's can be.
type endless struct{ header []byte }

func (e *endless) Read(p []byte) (int, error) {
	if n := copy(p, e.header); n > 0 {
		e.header = e.header[n:]
		return n, nil
	}
	clear(p)
	return len(p), nil
}

// TestCheckInterrupted ends a look at what takes for ever to read.
func TestCheckInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	var header strings.Builder
	if err := tar.NewWriter(&header).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "file", Size: 1 << 60}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, cancel)
	ended := make(chan error, 1)
	go func() { ended <- checkEntries(ctx, &untilDone{ctx, &endless{[]byte(header.String())}}) }()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}
