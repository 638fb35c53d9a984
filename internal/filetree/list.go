package filetree

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A list is a sequence of entries and ends with a line that only a complete one has:
//
//	KIND MODE SIZE MTIME SUM LENGTH-OF-NAME LENGTH-OF-LINK
//	NAME LINK (without a separator)
//	...
//	end COUNT
//
// MODE is octal, SUM hexadecimal or "-". Names can contain any byte but NUL.

// ListWriter writes a list.
type ListWriter struct {
	w *bufio.Writer
	n int64
}

// NewListWriter returns a writer of a list. The caller must call Close.
func NewListWriter(w io.Writer) *ListWriter { return &ListWriter{w: bufio.NewWriterSize(w, 256<<10)} }

// Write adds an entry.
func (l *ListWriter) Write(e Entry) error {
	l.n++
	sum := "-"
	if e.Sum != "" {
		sum = hex.EncodeToString([]byte(e.Sum))
	}
	_, err := fmt.Fprintf(l.w, "%c %o %d %d %s %d %d\n%s%s\n", e.Kind, e.Mode, e.Size, e.MTime, sum, len(e.Name), len(e.Link), e.Name, e.Link)
	return err
}

// Close completes the list. It does not close the underlying writer.
func (l *ListWriter) Close() error {
	_, err := fmt.Fprintf(l.w, "end %d\n", l.n)
	return errors.Join(err, l.w.Flush())
}

// ErrFormat means that a list or an archive is damaged or was truncated.
var ErrFormat = errors.New("invalid or incomplete file list")

// maxLine bounds the first line of an entry, in bytes.
const maxLine = 256

// ReadList reads a list and calls fn for every entry. It uses a constant amount of
// memory.
func ReadList(r io.Reader, fn func(Entry) error) error {
	b := bufio.NewReaderSize(r, 64<<10)
	for n := int64(0); ; n++ {
		line, err := readLine(b)
		if err != nil {
			return err
		}
		if count, ok := strings.CutPrefix(line, "end "); ok {
			if count != fmt.Sprint(n) {
				return ErrFormat
			}
			return nil
		}
		e, err := readEntry(b, line)
		if err != nil {
			return err
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

func readLine(b *bufio.Reader) (string, error) {
	line, err := b.ReadSlice('\n')
	if err != nil || len(line) > maxLine {
		if errors.Is(err, io.EOF) || err == nil || errors.Is(err, bufio.ErrBufferFull) {
			err = ErrFormat
		}
		return "", err
	}
	return string(line[:len(line)-1]), nil
}

func readEntry(b *bufio.Reader, line string) (Entry, error) {
	var e Entry
	var kind rune
	var sum string
	var name, link int
	if n, err := fmt.Sscanf(line, "%c %o %d %d %s %d %d", &kind, &e.Mode, &e.Size, &e.MTime, &sum, &name, &link); err != nil || n != 7 {
		return e, ErrFormat
	}
	e.Kind = Kind(kind)
	if !strings.ContainsRune("fdlo-", kind) || name < 1 || name > MaxName || link < 0 || link > unix.PathMax || e.Size < 0 {
		return e, ErrFormat
	}
	if sum != "-" {
		raw, err := hex.DecodeString(sum)
		if err != nil || len(raw) != sha256.Size {
			return e, ErrFormat
		}
		e.Sum = string(raw)
	}
	text := make([]byte, name+link+1)
	if _, err := io.ReadFull(b, text); err != nil {
		return e, ErrFormat
	}
	e.Name, e.Link = string(text[:name]), string(text[name:name+link])
	if text[name+link] != '\n' {
		return e, ErrFormat
	}
	if e.Name == "." {
		return e, nil
	}
	return e, CheckName(e.Name)
}

// List writes a list of all files below the root, without what is in directories named
// .git. Only names and metadata are read.
func List(r *Root, w io.Writer) error {
	l := NewListWriter(w)
	err := r.Walk(".", func(e Entry) error {
		if err := l.Write(e); err != nil {
			return err
		}
		if e.Kind == Dir && (e.Name == ".git" || strings.HasSuffix(e.Name, "/.git")) {
			return ErrSkipDir
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.Close()
}

// Hash reads names that end with NUL and writes a list of those files, with the hashes
// of the contents of regular files.
func Hash(r *Root, names io.Reader, w io.Writer) error {
	l := NewListWriter(w)
	err := ReadNames(names, func(name string) error {
		e, err := r.Describe(name)
		if err != nil {
			return err
		}
		return l.Write(e)
	})
	if err != nil {
		return err
	}
	return l.Close()
}

// Describe is Lstat with the hash of a regular file's content.
func (r *Root) Describe(name string) (Entry, error) {
	e, err := r.Lstat(name)
	if err != nil || e.Kind != File {
		return e, err
	}
	f, e, err := r.OpenFile(name)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, errNotRegular) {
			e.Kind = Other // replaced concurrently
			return e, nil
		}
		return e, err
	}
	defer func() { _ = f.Close() }() // read only
	h := sha256.New()
	if e.Size, err = io.Copy(h, f); err != nil {
		return e, fmt.Errorf("read %s: %w", name, err)
	}
	e.Sum = string(h.Sum(nil))
	return e, nil
}

// ReadNames reads names that end with NUL.
func ReadNames(r io.Reader, fn func(string) error) error {
	b := bufio.NewReaderSize(r, 64<<10)
	for {
		name, err := b.ReadString(0)
		if errors.Is(err, io.EOF) && name == "" {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read file names: %w", err)
		}
		if err := fn(strings.TrimSuffix(name, "\x00")); err != nil {
			return err
		}
	}
}
