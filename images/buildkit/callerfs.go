package buildkit

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/tonistiigi/fsutil"

	"github.com/bot-bottle/bottle/internal/asuser"
)

// callerFS is a directory that is read with the caller's rights.
type callerFS struct {
	fsutil.FS
	dir string
	in  *inputs
}

// mount adds a directory to mounts.
func (in *inputs) mount(mounts map[string]fsutil.FS, name, dir string) error {
	err := in.pool.Do(func() error {
		dirFS, err := fsutil.NewFS(dir)
		mounts[name] = &callerFS{FS: dirFS, dir: dir, in: in}
		return err
	})
	return in.deny(dir, err)
}

// Walk implements fsutil.FS. It uses a thread of its own because fn may wait until the
// receiver has read files.
func (f *callerFS) Walk(ctx context.Context, target string, fn fs.WalkDirFunc) error {
	return asuser.Run(f.in.req.Caller, func() error {
		return f.FS.Walk(ctx, target, func(path string, entry fs.DirEntry, werr error) error {
			var e *callerEntry
			if entry != nil {
				e = &callerEntry{DirEntry: entry, fs: f, path: path, walking: true}
				defer func() { e.walking = false }()
				entry = e
			}
			err := fn(path, entry, werr)
			if werr != nil && err != nil { // of an excluded directory, fn ignores the error
				err = f.deny(path, err)
			}
			return err
		})
	})
}

func (f *callerFS) deny(path string, err error) error {
	return f.in.deny(filepath.Join(f.dir, path), err)
}

// callerEntry reads an entry's metadata with the caller's rights, also after the call
// of the WalkDirFunc that it was passed to.
type callerEntry struct {
	fs.DirEntry
	fs      *callerFS
	path    string
	walking bool // the current thread has the caller's rights
}

func (e *callerEntry) Info() (info fs.FileInfo, err error) {
	read := func() error {
		info, err = e.DirEntry.Info()
		return err
	}
	if e.walking {
		_ = read()
	} else {
		err = e.fs.in.pool.Do(read)
	}
	return info, e.fs.deny(e.path, err)
}

// Open implements fsutil.FS. BuildKit sends a file that cannot be opened as an empty
// one. That is right for a file that was removed; any other error fails the build.
func (f *callerFS) Open(path string) (io.ReadCloser, error) {
	r := &callerFile{in: f.in, buf: buffers.Get().(*[]byte)}
	err := f.in.pool.Do(func() (err error) {
		if r.file, err = f.FS.Open(path); err == nil {
			r.fill()
		}
		return err
	})
	if err == nil {
		return r, nil
	}
	buffers.Put(r.buf)
	if !errors.Is(err, fs.ErrNotExist) {
		err = f.deny(path, err)
		f.in.fail(err)
	}
	return nil, err
}

// callerFile reads a file on the caller's threads: some files of /proc check the
// rights of each read. A small file is read when it is opened.
type callerFile struct {
	in   *inputs
	file io.ReadCloser
	buf  *[]byte
	rest []byte // of buf
	err  error  // after rest
}

// bufferSize is the size of reads, in bytes.
const bufferSize = 64 << 10

var buffers = sync.Pool{New: func() any {
	b := make([]byte, bufferSize)
	return &b
}}

// fill fills the buffer, up to the end of the file.
func (r *callerFile) fill() {
	n, err := 0, error(nil)
	for n < bufferSize && err == nil {
		var m int
		m, err = r.file.Read((*r.buf)[n:])
		n += m
	}
	r.rest, r.err = (*r.buf)[:n], err
}

func (r *callerFile) Read(p []byte) (int, error) {
	if len(r.rest) == 0 && r.err == nil {
		err := r.in.pool.Do(func() error { r.fill(); return nil })
		if err != nil {
			return 0, err
		}
	}
	if len(r.rest) == 0 {
		if !errors.Is(r.err, io.EOF) {
			r.in.fail(r.err)
		}
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *callerFile) Close() error {
	buffers.Put(r.buf)
	r.buf, r.rest = nil, nil
	return r.file.Close()
}
