package buildkit

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// oneFile returns an in-memory directory that contains one file.
func oneFile(name string, data []byte) fsutil.FS { return memFS{name: name, data: data} }

type memFS struct {
	name string
	data []byte
}

// Walk visits target and everything below it.
func (m memFS) Walk(_ context.Context, target string, fn fs.WalkDirFunc) error {
	if t := filepath.Clean("/" + target); t != "/" && t != "/"+m.name {
		return &fs.PathError{Op: "walk", Path: target, Err: syscall.ENOENT}
	}
	stat := &fstypes.Stat{Path: m.name, Mode: 0o644, Size: int64(len(m.data)), ModTime: time.Unix(0, 0).UnixNano()}
	return fn(m.name, &fsutil.DirEntryInfo{Stat: stat}, nil)
}

func (m memFS) Open(path string) (io.ReadCloser, error) {
	if path != m.name {
		return nil, os.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(m.data)), nil
}
