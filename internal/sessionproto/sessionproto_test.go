package sessionproto

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

func TestRead(t *testing.T) {
	r := bytes.NewReader(append(Frame(KindStdout, []byte("text")), Frame(KindEOF, nil)...))
	if kind, data, err := Read(r); kind != KindStdout || string(data) != "text" || err != nil {
		t.Errorf("%c %q %v", kind, data, err)
	}
	if kind, data, err := Read(r); kind != KindEOF || len(data) != 0 || err != nil {
		t.Errorf("%c %q %v", kind, data, err)
	}
	if _, _, err := Read(r); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	whole := Frame(KindStdout, []byte("text"))
	for n := 1; n < len(whole); n++ {
		if _, _, err := Read(bytes.NewReader(whole[:n])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// TestReader: a reader reads the same frames as Read, larger ones than its buffer too.
func TestReader(t *testing.T) {
	var stream []byte
	sizes := []int{0, 1, Chunk, MaxOutput, 3, MaxOutput + 1, MaxFrame, 5}
	for i, n := range sizes {
		stream = append(stream, Frame(KindStdout, bytes.Repeat([]byte{byte(i)}, n))...)
	}
	r := NewReader(bytes.NewReader(stream), Chunk)
	for i, n := range sizes {
		kind, data, err := r.Read()
		if kind != KindStdout || err != nil || !bytes.Equal(data, bytes.Repeat([]byte{byte(i)}, n)) {
			t.Errorf("frame %d: %c, %d bytes, %v", i, kind, len(data), err)
		}
	}
	if _, _, err := r.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if _, _, err := NewReader(bytes.NewReader(stream[:Header+Header]), Chunk).Read(); err != nil {
		t.Errorf("a frame without content: %v", err)
	}
}

// FuzzRead: a frame is read as it was written, and nothing larger than MaxFrame.
func FuzzRead(f *testing.F) {
	f.Add(Frame(KindStdout, []byte("text")))
	f.Add([]byte("o\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		kind, data, err := Read(bytes.NewReader(in))
		if err == nil && (len(data) > MaxFrame || !bytes.HasPrefix(in, Frame(kind, data))) {
			t.Errorf("%c %q of %q", kind, data, in)
		}
	})
}
