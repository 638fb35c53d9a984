package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"golang.org/x/term"

	"github.com/bot-bottle/bottle/images/supply"
)

// progressView shows the progress of a pull, a push or a derived image. On a
// terminal it draws a bar for each part; elsewhere it prints a line for each
// finished part.
type progressView struct {
	out           func(format string, args ...any)
	terminal      bool
	width, height int

	mu    sync.Mutex
	parts map[string]supply.Progress
	order []string
	drawn int // lines on the screen
	last  time.Time
	ended map[string]bool // parts whose line was printed
}

// redrawInterval is the least time between two redraws.
const redrawInterval = 80 * time.Millisecond

// Size of a terminal that does not report one.
const (
	defaultWidth  = 80
	defaultHeight = 24
)

func (a *app) newProgress() *progressView {
	v := &progressView{out: a.errorf, width: defaultWidth, height: defaultHeight}
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		v.terminal = true
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 0 && h > 0 {
			v.width, v.height = w, h
		}
	}
	return v
}

// update records the progress of one part.
func (v *progressView) update(p supply.Progress) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.parts == nil {
		v.parts, v.ended = map[string]supply.Progress{}, map[string]bool{}
	}
	if _, ok := v.parts[p.ID]; !ok {
		v.order = append(v.order, p.ID)
	}
	v.parts[p.ID] = p
	if !v.terminal {
		if ended(p) && !v.ended[p.ID] {
			v.ended[p.ID] = true
			v.out("%s  %s  %s\n", partName(p.ID), units.HumanSize(float64(p.Total)), p.State)
		}
		return
	}
	if now := time.Now(); now.Sub(v.last) >= redrawInterval {
		v.last = now
		v.draw()
	}
}

// end draws the final state.
func (v *progressView) end() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.terminal && len(v.order) > 0 {
		v.draw()
	}
	v.parts, v.order, v.drawn = nil, nil, 0
}

// draw replaces the previous drawing. If there are more parts than lines on the
// screen, finished parts are left out.
func (v *progressView) draw() {
	lines := v.lines()
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn) // up, ECMA-48
	}
	b.WriteString("\r\x1b[J") // erase to the end of the screen
	for _, l := range lines {
		b.WriteString(l + "\n")
	}
	v.drawn = len(lines)
	v.out("%s", b.String())
}

func (v *progressView) lines() []string {
	room := max(v.height-2, 1)
	var done, total int64
	finished := 0
	shown := v.order
	for _, id := range v.order {
		p := v.parts[id]
		done, total = done+p.Done, total+p.Total
		if ended(p) {
			finished++
		}
	}
	var lines []string
	if len(shown) > room {
		lines = append(lines, fit(fmt.Sprintf("%d of %d parts, %s of %s", finished, len(shown),
			units.HumanSize(float64(done)), units.HumanSize(float64(total))), v.width))
		room--
	}
	for _, id := range shown {
		p := v.parts[id]
		if len(lines) > room || len(shown) > v.height-2 && ended(p) {
			continue
		}
		lines = append(lines, fit(v.line(p), v.width))
	}
	return lines
}

// barWidth is the width of a bar, in columns.
const barWidth = 24

func (v *progressView) line(p supply.Progress) string {
	filled := barWidth
	if p.Total > 0 {
		filled = int(barWidth * min(p.Done, p.Total) / p.Total)
	} else if !ended(p) {
		filled = 0
	}
	bar := strings.Repeat("=", filled) + strings.Repeat(" ", barWidth-filled)
	state := p.State
	if p.State == supply.Active && filepath.IsAbs(p.ID) {
		state = "copying" // a directory of this host
	}
	return fmt.Sprintf("%-12s [%s] %8s / %-8s %s", partName(p.ID), bar,
		units.HumanSize(float64(p.Done)), units.HumanSize(float64(p.Total)), state)
}

func ended(p supply.Progress) bool {
	return p.State == supply.Done || p.State == supply.Exists
}

// partName is a layer's digest as docker shortens it, or a directory's name.
func partName(id string) string {
	if hex, ok := strings.CutPrefix(id, "sha256:"); ok && len(hex) > 12 {
		return hex[:12]
	}
	return visible(filepath.Base(id))
}

// fit truncates a line that would wrap: a redraw would leave a part of it behind.
func fit(s string, width int) string {
	runes := []rune(s)
	if len(runes) >= width {
		return string(runes[:max(width-1, 0)])
	}
	return s
}
