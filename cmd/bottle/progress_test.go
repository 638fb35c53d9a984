package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/images/supply"
)

// shown returns the output of a view for a pull of n layers of 2 MB each, half of
// them finished.
func shown(v *progressView, n int) string {
	var b strings.Builder
	v.out = func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	id := func(i int) string { return fmt.Sprintf("sha256:%012x%052x", i, 0) }
	for i := range n {
		v.update(supply.Progress{ID: id(i), State: supply.Waiting, Total: 2e6})
		v.update(supply.Progress{ID: id(i), State: supply.Active, Done: 1e6, Total: 2e6})
	}
	for i := range n / 2 {
		for range 2 {
			v.update(supply.Progress{ID: id(i), State: supply.Done, Done: 2e6, Total: 2e6})
		}
	}
	v.end()
	return b.String()
}

func TestProgressPlain(t *testing.T) {
	got := shown(&progressView{}, 4)
	if want := "000000000000  2MB  done\n000000000001  2MB  done\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A directory that is copied is not downloaded.
func TestProgressCopy(t *testing.T) {
	v := &progressView{}
	if got := v.line(supply.Progress{ID: "/home/me/project", State: supply.Active, Done: 1, Total: 2}); !strings.Contains(got, "1B / 2B       copying") {
		t.Errorf("got %q", got)
	}
	if got := v.line(supply.Progress{ID: "sha256:0", State: supply.Active, Done: 1, Total: 2}); !strings.Contains(got, "downloading") {
		t.Errorf("control: %q", got)
	}
}

func TestProgressTerminal(t *testing.T) {
	got := shown(&progressView{terminal: true, width: 80, height: 24}, 4)
	last := got[strings.LastIndex(got, "\x1b[J")+len("\x1b[J"):]
	lines := strings.Split(strings.TrimSuffix(last, "\n"), "\n")
	if len(lines) != 4 || !strings.Contains(lines[0], "2MB / 2MB") || !strings.Contains(lines[3], "[============            ]") ||
		!strings.Contains(lines[3], "1MB / 2MB") {
		t.Errorf("the last screen is\n%s", last)
	}
}

// Any number of layers fits a screen of any size: otherwise a redraw would leave
// parts of the previous drawing.
func TestProgressFits(t *testing.T) {
	const width, height = 30, 8
	got := shown(&progressView{terminal: true, width: width, height: height}, 100)
	for screen := range strings.SplitSeq(got, "\x1b[J") {
		lines := strings.Split(screen, "\n")
		if len(lines) > height {
			t.Errorf("%d lines on a screen of %d", len(lines), height)
		}
		for _, l := range lines {
			if len([]rune(strings.TrimSpace(l))) >= width && !strings.Contains(l, "\x1b[") {
				t.Errorf("a line of %d columns: %q", len([]rune(l)), l)
			}
		}
	}
	if !strings.Contains(got, "50 of 100 parts") {
		t.Error("hidden parts are not counted")
	}
}

func TestProgressNothing(t *testing.T) {
	if got := shown(&progressView{terminal: true, width: 80, height: 24}, 0); got != "" {
		t.Errorf("got %q", got)
	}
}
