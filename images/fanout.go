package images

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// Size of a fanout's chunks, and how many chunks, pieces and bytes of pieces may be
// queued for a slow reader. On a busy machine, a reader that was not scheduled for a
// while should find a full queue.
const (
	chunkSize    = 1 << 20
	chunksQueued = 32
	piecesQueued = 8192
	bytesQueued  = 32 << 20
)

// fanout copies what is written to it to several readers, each in its own goroutine,
// so that hashing, compressing and unpacking run concurrently.
type fanout struct {
	ctx   context.Context
	group *errgroup.Group
	sinks []chan []byte
	chunk []byte
	// pieces go to the reader that unpacks: the entries before tar encoding.
	pieces chan piece
	room   *semaphore.Weighted // bytes of queued pieces
}

func newFanout(ctx context.Context) *fanout {
	g, ctx := errgroup.WithContext(ctx)
	return &fanout{ctx: ctx, group: g, pieces: make(chan piece, piecesQueued), room: semaphore.NewWeighted(bytesQueued)}
}

// to adds a reader. Its error stops the fanout.
func (f *fanout) to(read func(ctx context.Context, r io.Reader) error) {
	f.toChunks(func(ctx context.Context, chunks <-chan []byte) error {
		r := &chunkReader{ctx: ctx, chunks: chunks}
		if err := read(ctx, r); err != nil {
			return err
		}
		// A reader that stops early must not block the others.
		_, err := io.Copy(io.Discard, r)
		return err
	})
}

// toChunks adds a reader of chunks. It may keep them but must not modify them.
func (f *fanout) toChunks(read func(ctx context.Context, chunks <-chan []byte) error) {
	sink := make(chan []byte, chunksQueued)
	f.sinks = append(f.sinks, sink)
	f.group.Go(func() error { return read(f.ctx, sink) })
}

// toPieces adds the reader of pieces: take is called for each one, end after the
// last. An error stops the fanout.
func (f *fanout) toPieces(take func(piece) error, end func() error) {
	f.group.Go(func() error {
		for {
			select {
			case p, more := <-f.pieces:
				if !more {
					return end()
				}
				if err := take(p); err != nil {
					return err
				}
				f.room.Release(int64(len(p.data)))
			case <-f.ctx.Done():
				return f.ctx.Err()
			}
		}
	})
}

func (f *fanout) put(p piece) error {
	if err := f.room.Acquire(f.ctx, int64(len(p.data))); err != nil {
		return err
	}
	select {
	case f.pieces <- p:
		return nil
	case <-f.ctx.Done():
		return f.ctx.Err()
	}
}

func (f *fanout) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		if f.chunk == nil {
			f.chunk = make([]byte, 0, chunkSize)
		}
		n := min(len(p), chunkSize-len(f.chunk))
		f.chunk = append(f.chunk, p[:n]...)
		p = p[n:]
		if len(f.chunk) == chunkSize {
			if err := f.flush(); err != nil {
				return 0, err
			}
		}
	}
	return written, nil
}

// space returns a buffer of 1 to n bytes to read into; fill then commits them.
func (f *fanout) space(n int64) ([]byte, error) {
	if f.chunk != nil && int64(cap(f.chunk)-len(f.chunk)) < min(n, minSpace) {
		if err := f.flush(); err != nil {
			return nil, err
		}
	}
	if f.chunk == nil {
		f.chunk = make([]byte, 0, chunkSize)
	}
	free := f.chunk[len(f.chunk):cap(f.chunk)]
	return free[:min(n, int64(len(free)))], nil
}

// minSpace is the smallest buffer worth a read call, in bytes.
const minSpace = 64 << 10

// fill commits the first n bytes of the buffer returned by space.
func (f *fanout) fill(n int) error {
	f.chunk = f.chunk[:len(f.chunk)+n]
	if len(f.chunk) < cap(f.chunk) {
		return nil
	}
	return f.flush()
}

func (f *fanout) flush() error {
	for _, sink := range f.sinks {
		select {
		case sink <- f.chunk:
		case <-f.ctx.Done():
			return f.ctx.Err()
		}
	}
	f.chunk = nil
	return nil
}

// run calls fn, which writes, and returns when all readers are finished. The error
// is the first one that occurred.
func (f *fanout) run(fn func(context.Context) error) error {
	f.group.Go(func() error {
		if err := fn(f.ctx); err != nil {
			return err
		}
		if err := f.flush(); err != nil {
			return err
		}
		for _, sink := range f.sinks {
			close(sink)
		}
		close(f.pieces)
		return nil
	})
	return f.group.Wait()
}

type chunkReader struct {
	ctx    context.Context
	chunks <-chan []byte
	rest   []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		var err error
		if r.rest, err = r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *chunkReader) next() ([]byte, error) {
	select {
	case chunk, more := <-r.chunks:
		if !more {
			return nil, io.EOF
		}
		return chunk, nil
	case <-r.ctx.Done():
		return nil, r.ctx.Err()
	}
}

// WriteTo implements io.WriterTo, so that io.Copy needs no buffer.
func (r *chunkReader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		m, err := w.Write(r.rest)
		n += int64(m)
		if err != nil {
			return n, err
		}
		if r.rest, err = r.next(); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return n, err
		}
	}
}
