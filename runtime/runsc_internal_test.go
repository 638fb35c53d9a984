package runtime

import "testing"

func TestCachedDentries(t *testing.T) {
	for _, c := range []struct {
		files  uint64
		memory int64
		want   uint64
	}{
		{524288, 4 << 30, 32768},
		{20000, 4 << 30, 3333},
		{524288, 1 << 30, 8192},
		{^uint64(0), 1 << 50, 32768}, // RLIM_INFINITY
		{524288, 64 << 20, 0}, {1024, 4 << 30, 0}, {0, 4 << 30, 0}, {524288, 0, 0},
	} {
		if got := cachedDentries(c.files, c.memory); got != c.want {
			t.Errorf("%d files, %d bytes: %d, want %d", c.files, c.memory, got, c.want)
		}
	}
}
