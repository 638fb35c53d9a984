package images

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// hole is a range of a file that takes no room on the disk.
type hole struct {
	name          string // in the image
	begin, length int64
}

// minHole is the least that is worth a call, in bytes; maxHoles bounds how many
// are kept of one file.
const (
	minHole  = 64 << 10
	maxHoles = 10000
)

// findHoles lists the holes of an open file. A file system that does not tell
// has none.
func findHoles(f *os.File, st *unix.Stat_t, name string) []hole {
	if st.Size-st.Blocks*512 < minHole { // Blocks are of 512 bytes, stat(2)
		return nil
	}
	var out []hole
	for at := int64(0); at < st.Size && len(out) < maxHoles; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE)
		if err != nil || begin >= st.Size {
			break
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			end, err = st.Size, nil // nothing but a hole from here on
		}
		if err != nil {
			break
		}
		if end-begin >= minHole {
			out = append(out, hole{name, begin, end - begin})
		}
		at = end
	}
	if _, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_SET); err != nil {
		return nil
	}
	return out
}

// punch gives the holes back to the disk: a tar has zeros in their place. Where
// the snapshot's file system cannot, they stay zeros.
func punch(dir string, holes []hole) error {
	if len(holes) == 0 {
		return nil
	}
	root, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	for _, h := range holes {
		if err := punchOne(root, h); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !changedMeanwhile(err) {
			return fmt.Errorf("keep %s sparse: %w", h.name, err)
		}
	}
	return nil
}

func punchOne(root *os.File, h hole) (err error) {
	f, err := openBeneath(root, h.name, unix.O_RDWR)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, h.begin, h.length); err != nil {
		return err
	}
	// The file's time is the folder's, not this call's.
	return unix.Futimes(int(f.Fd()), []unix.Timeval{unix.NsecToTimeval(st.Atim.Nano()), unix.NsecToTimeval(st.Mtim.Nano())})
}
