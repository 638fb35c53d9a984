package images

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"
)

// Chunks that a fanout hands on, and how many of them, and of pieces and their
// bytes, may wait for a slow reader. On a busy machine a reader that has to wait
// for its turn should find much to do then.
const (
	chunkSize   = 1 << 20
	chunksAhead = 32
	piecesAhead = 8192
	bytesAhead  = 32 << 20
)

// fanout hands everything that is written to it to several readers, each on its
// own goroutine, so that hashing, compressing and unpacking go at the same time.
type fanout struct {
	ctx   context.Context
	group *errgroup.Group
	sinks []chan []byte
	chunk []byte
	// pieces go to a reader who wants them as they were before they became a tar.
	pieces chan piece
	room   *semaphore.Weighted // for bytes of pieces
}

func newFanout(ctx context.Context) *fanout {
	g, ctx := errgroup.WithContext(ctx)
	return &fanout{ctx: ctx, group: g, pieces: make(chan piece, piecesAhead), room: semaphore.NewWeighted(bytesAhead)}
}

// to adds a reader. Its error ends the whole.
func (f *fanout) to(read func(ctx context.Context, r io.Reader) error) {
	f.toChunks(func(ctx context.Context, chunks <-chan []byte) error {
		r := &chunkReader{ctx: ctx, chunks: chunks}
		if err := read(ctx, r); err != nil {
			return err
		}
		// A reader that has seen enough must not hold the others up.
		_, err := io.Copy(io.Discard, r)
		return err
	})
}

// toChunks is to for a reader of all chunks, which it may keep and not change.
func (f *fanout) toChunks(read func(ctx context.Context, chunks <-chan []byte) error) {
	sink := make(chan []byte, chunksAhead)
	f.sinks = append(f.sinks, sink)
	f.group.Go(func() error { return read(f.ctx, sink) })
}

// toPieces adds the reader of pieces: take is called for each, end after the
// last. An error ends the whole.
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

// space is room for at most n bytes, to be read into and then handed on by fill;
// at least one.
func (f *fanout) space(n int64) ([]byte, error) {
	if f.chunk != nil && int64(cap(f.chunk)-len(f.chunk)) < min(n, leastSpace) {
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

// leastSpace is how much room is worth a call, in bytes.
const leastSpace = 64 << 10

// fill hands on the first n bytes of space.
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

// run writes by fn and returns when all have read to the end; the error is that
// of whoever failed first.
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
