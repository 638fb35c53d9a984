package worktree

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // the format's checksum
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// indexEntry is an entry of git's index.
type indexEntry struct {
	name  string
	mode  uint32
	id    string // hexadecimal
	stage int
	skip  bool            // skip-worktree: the file is not in the work tree
	clean *filetree.Entry // the unchanged file; nil: git must compare the content
}

// readIndex reads the repository's index.
func (r *repository) readIndex(ctx context.Context) error {
	out, err := r.git.output(ctx, "ls-files", "-z", "-s", "-t")
	if err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	r.index = nil
	for line := range fields(out) {
		// TAG SP MODE SP OBJECT SP STAGE TAB NAME
		info, name, ok := strings.Cut(line, "\t")
		part := strings.Fields(info)
		if !ok || len(part) != 4 {
			return fmt.Errorf("read index: unexpected output of git: %.100q", line)
		}
		mode, err := strconv.ParseUint(part[1], 8, 32)
		if err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		stage, err := strconv.Atoi(part[3])
		if err != nil {
			return fmt.Errorf("read index: %w", err)
		}
		r.index = append(r.index, indexEntry{name: name, mode: uint32(mode), id: part[2], stage: stage, skip: part[0] == "S"})
	}
	return nil
}

// changed returns the names of tracked files that differ from the index. Filters are off:
// without them, git takes what it cannot compare for changed.
func (r *repository) changed(ctx context.Context) (map[string]bool, error) {
	off, err := r.noFilters(ctx)
	if err != nil {
		return nil, err
	}
	g := *r.git
	g.config = off
	out, err := g.output(ctx, "diff-files", "-z", "--name-only", "--no-ext-diff", "--ignore-submodules=all")
	if err != nil {
		return nil, fmt.Errorf("compare with the index: %w", err)
	}
	names := map[string]bool{}
	for name := range fields(out) {
		names[name] = true
	}
	return names, nil
}

// noFilters returns the configuration that turns all filters off.
func (r *repository) noFilters(ctx context.Context) ([]string, error) {
	out, err := r.git.output(ctx, "config", "-z", "--name-only", "--get-regexp", `^filter\.`)
	if err != nil && exitCode(err) != 1 { // 1: none
		return nil, err
	}
	var off []string
	for key := range fields(out) {
		driver := key[:strings.LastIndexByte(key, '.')]
		if strings.ContainsAny(driver, "=\n") { // cannot be overridden by -c
			return nil, fmt.Errorf("invalid name of a filter: %.100q", driver)
		}
		for _, setting := range []string{".clean=", ".smudge=", ".process=", ".required=false"} {
			off = append(off, driver+setting)
		}
	}
	slices.Sort(off)
	return slices.Compact(off), nil
}

// lfsPointer is the beginning of a Git LFS pointer's line with the content's hash
// (git-lfs, docs/spec.md).
const lfsPointer = "version https://git-lfs.github.com/spec/v1\noid sha256:"

// isPointerTo reports whether a blob is a Git LFS pointer to a content.
func isPointerTo(blob []byte, e filetree.Entry) bool {
	return bytes.HasPrefix(blob, fmt.Appendf(nil, "%s%x\nsize %d\n", lfsPointer, e.Sum, e.Size))
}

// readPointers reads the blobs of changed files that may be pointers. With its filter off,
// git takes the content of every recently written Git LFS file for changed.
func (r *repository) readPointers(ctx context.Context, changed map[string]bool) error {
	var ids bytes.Buffer
	for _, e := range r.index {
		if changed[e.name] && e.mode != gitlink && e.stage == 0 {
			fmt.Fprintln(&ids, e.id)
		}
	}
	if ids.Len() == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, gitTime)
	defer cancel()
	var sizes bytes.Buffer
	if err := r.git.run(ctx, &ids, &sizes, "cat-file", "--batch-check"); err != nil {
		return err
	}
	r.pointers = map[string][]byte{}
	for line := range strings.Lines(sizes.String()) {
		part := strings.Fields(line) // OBJECT TYPE SIZE, or OBJECT "missing"
		if len(part) != 3 || part[1] != "blob" {
			continue
		}
		if size, err := strconv.Atoi(part[2]); err != nil || size > maxPointer || size < len(lfsPointer) {
			continue
		}
		blob, err := r.git.output(ctx, "cat-file", "blob", part[0])
		if err != nil {
			return err
		}
		if bytes.HasPrefix(blob, []byte(lfsPointer)) {
			r.pointers[part[0]] = blob
		}
	}
	return nil
}

// maxPointer is the largest size of a pointer, in bytes (git-lfs, docs/spec.md).
const maxPointer = 1024

// encodeIndex returns the index file (gitformat-index(5), version 2, or 3 with flags).
// entries are in git's order. The times and sizes of unchanged files are those of the
// copy, so that git need not read them; with core.checkStat=minimal git compares no others.
func encodeIndex(entries []indexEntry, newHash func() hash.Hash) ([]byte, error) {
	version := uint32(2)
	for _, e := range entries {
		if e.skip {
			version = 3
		}
	}
	var b bytes.Buffer
	b.WriteString("DIRC")
	word := func(n uint32) { _ = binary.Write(&b, binary.BigEndian, n) } // a Buffer never fails
	word(version)
	word(uint32(len(entries)))
	for _, e := range entries {
		start := b.Len()
		var stat struct{ sec, nsec, size uint32 }
		if e.clean != nil {
			stat.sec, stat.nsec = uint32(e.clean.MTime/1e9), uint32(e.clean.MTime%1e9)
			stat.size = uint32(e.clean.Size)
			if e.clean.Kind == filetree.Link {
				stat.size = uint32(len(e.clean.Link))
			}
		}
		// ctime, mtime, dev, ino, mode, uid, gid, size
		for _, n := range []uint32{stat.sec, stat.nsec, stat.sec, stat.nsec, 0, 0, e.mode, 0, 0, stat.size} {
			word(n)
		}
		id, err := hex.DecodeString(e.id)
		if err != nil {
			return nil, fmt.Errorf("write index: %w", err)
		}
		b.Write(id)
		flags := uint16(e.stage)<<12 | uint16(min(len(e.name), 0xfff))
		if e.skip {
			flags |= 0x4000
		}
		_ = binary.Write(&b, binary.BigEndian, flags)
		if e.skip {
			_ = binary.Write(&b, binary.BigEndian, uint16(0x4000)) // skip-worktree
		}
		b.WriteString(e.name)
		b.Write(make([]byte, 8-(b.Len()-start)%8)) // 1 to 8 NULs
	}
	h := newHash()
	h.Write(b.Bytes())
	return h.Sum(b.Bytes()), nil
}

func hasher(format string) func() hash.Hash {
	if format == "sha256" {
		return sha256.New
	}
	return sha1.New
}
