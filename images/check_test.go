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

// TestManyLinks: memory use is bounded for a layer with an endless list of links.
func TestManyLinks(t *testing.T) {
	r, w := io.Pipe()
	go func() {
		to := tar.NewWriter(w)
		target := strings.Repeat("long/", 800)
		for i := 0; ; i++ {
			if to.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprint(i), Linkname: target}) != nil {
				return // the reader is closed
			}
		}
	}()
	err := checkEntries(context.Background(), r)
	if err == nil || !strings.Contains(err.Error(), "too many symbolic links") {
		t.Errorf("got %v", err)
	}
	_ = r.Close()
}

// endless is a layer with one file of the maximum size in a tar.
type endless struct{ header []byte }

func (e *endless) Read(p []byte) (int, error) {
	if n := copy(p, e.header); n > 0 {
		e.header = e.header[n:]
		return n, nil
	}
	clear(p)
	return len(p), nil
}

// TestCheckInterrupted cancels the check of an endless layer.
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
		t.Error("the check continues after cancellation")
	}
}
