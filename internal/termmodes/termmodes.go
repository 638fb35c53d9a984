// Package termmodes follows a program's output to know which modes of the terminal it
// has changed, so that they can be restored when the program's output ends in the middle,
// and set again on another terminal.
package termmodes

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/charmbracelet/x/ansi"
)

// Private modes (xterm's ctlseqs, "DEC Private Mode Set") that are followed. Each is off
// by default, except those in onByDefault.
var followed = map[int]bool{
	1: true, 5: true, 6: true, 7: true, 9: true, 12: false, 25: true, 66: true,
	1000: true, 1001: true, 1002: true, 1003: true, 1004: true, 1005: true, 1006: true, 1007: true, 1015: true, 1016: true,
	2004: true, 2026: true, 2027: true, 2031: true, 2048: true,
}

var onByDefault = map[int]bool{7: true, 25: true}

// alternateScreens are the modes that select the alternate screen.
var alternateScreens = []int{47, 1047, 1049}

// maxStack bounds the remembered depth of the stack of keyboard flags; kitty's own is
// smaller.
const maxStack = 64

// Tracker follows output. It is an io.Writer, and is not safe for concurrent use.
type Tracker struct {
	parser  *ansi.Parser
	changed map[int]bool // mode: its value, where that is not the default
	alt     int          // mode that selected the alternate screen; 0: the main screen
	// kitty is the stack of keyboard flags of the main and of the alternate screen
	// (kitty's "Comprehensive keyboard handling in terminals").
	kitty     [2][]int
	modifiers string // parameters of XTMODKEYS; empty: the default
	cursor    int    // DECSCUSR
	keypad    bool   // application keypad
	margins   string // parameters of DECSTBM; empty: none
	styled    bool   // SGR is not the default
}

// New returns a tracker of a terminal in its default state.
func New() *Tracker {
	t := &Tracker{parser: ansi.NewParser(), changed: map[int]bool{}}
	t.parser.SetDataSize(1 << 10) // strings are not looked at
	t.parser.SetHandler(ansi.Handler{HandleCsi: t.csi, HandleEsc: t.esc})
	return t
}

// Write follows more output. It never fails.
func (t *Tracker) Write(p []byte) (int, error) {
	for _, b := range p {
		t.parser.Advance(b)
	}
	return len(p), nil
}

// Alternate reports whether the alternate screen is shown.
func (t *Tracker) Alternate() bool { return t.alt != 0 }

func (t *Tracker) esc(cmd ansi.Cmd) {
	if cmd.Intermediate() != 0 {
		return
	}
	switch cmd.Final() {
	case '=':
		t.keypad = true
	case '>':
		t.keypad = false
	case 'c': // full reset
		t.reset()
	}
}

func (t *Tracker) reset() {
	p := t.parser
	*t = Tracker{parser: p, changed: map[int]bool{}}
}

func (t *Tracker) csi(cmd ansi.Cmd, params ansi.Params) {
	first, _, _ := params.Param(0, 0)
	prefix, inter := cmd.Prefix(), cmd.Intermediate()
	switch final := cmd.Final(); {
	case prefix == '?' && inter == 0 && (final == 'h' || final == 'l'):
		for i := range params {
			mode, _, _ := params.Param(i, 0)
			t.set(mode, final == 'h')
		}
	case final == 'u' && inter == 0:
		t.keyboard(prefix, params)
	case prefix == '>' && inter == 0 && final == 'm':
		t.modifiers = join(params)
		if value, _, ok := params.Param(1, 0); first != 4 || !ok || value == 0 {
			t.modifiers = ""
		}
	case prefix == 0 && inter == ' ' && final == 'q':
		t.cursor = first
	case prefix == 0 && inter == 0 && final == 'r':
		if t.margins = join(params); first <= 1 && len(params) < 2 {
			t.margins = ""
		}
	case prefix == 0 && inter == 0 && final == 'm':
		last, _, _ := params.Param(len(params)-1, 0)
		t.styled = len(params) > 0 && last != 0
	case prefix == 0 && inter == '!' && final == 'p': // soft reset
		for _, mode := range []int{1, 6, 7, 25, 66} {
			delete(t.changed, mode)
		}
		t.margins, t.styled, t.keypad = "", false, false
	}
}

func (t *Tracker) set(mode int, on bool) {
	if slices.Contains(alternateScreens, mode) {
		if on && t.alt == 0 {
			t.alt = mode
		} else if !on {
			t.alt = 0
		}
		return
	}
	if !followed[mode] {
		return
	}
	if on == onByDefault[mode] {
		delete(t.changed, mode)
	} else {
		t.changed[mode] = on
	}
}

// keyboard follows the stack of keyboard flags: > pushes, < pops, = changes the top.
func (t *Tracker) keyboard(prefix byte, params ansi.Params) {
	stack := &t.kitty[t.screen()]
	n, _, _ := params.Param(0, 0)
	switch prefix {
	case '>':
		if len(*stack) < maxStack {
			*stack = append(*stack, n)
		}
	case '<':
		*stack = (*stack)[:max(0, len(*stack)-max(1, n))]
	case '=':
		if len(*stack) > 0 {
			(*stack)[len(*stack)-1] = n
		}
	}
}

func (t *Tracker) screen() int {
	if t.alt != 0 {
		return 1
	}
	return 0
}

func join(params ansi.Params) string {
	var list []string
	for i := range params {
		n, _, _ := params.Param(i, 0)
		list = append(list, fmt.Sprint(n))
	}
	return strings.Join(list, ";")
}

// Restore returns the sequences that bring the terminal back to its default state. It is
// empty if nothing was changed. It begins by ending a sequence that was cut off.
func (t *Tracker) Restore() string {
	var b strings.Builder
	if n := len(t.kitty[1]); n > 0 && t.alt != 0 {
		fmt.Fprintf(&b, "\x1b[<%du", n)
	}
	for _, mode := range slices.Sorted(maps.Keys(t.changed)) {
		b.WriteString(private(mode, onByDefault[mode]))
	}
	if t.modifiers != "" {
		b.WriteString("\x1b[>4m")
	}
	if t.keypad {
		b.WriteString("\x1b>")
	}
	if t.cursor > 1 {
		b.WriteString("\x1b[0 q")
	}
	if t.margins != "" {
		b.WriteString("\x1b7\x1b[r\x1b8") // DECSTBM moves the cursor
	}
	if t.styled {
		b.WriteString("\x1b[m")
	}
	if t.alt != 0 {
		b.WriteString(private(t.alt, false))
	}
	if n := len(t.kitty[0]); n > 0 {
		fmt.Fprintf(&b, "\x1b[<%du", n)
	}
	if t.parser.State() != 0 && b.Len() > 0 {
		return "\x1b\\" + b.String() // ends a sequence that was cut off
	}
	return b.String()
}

// Set returns the sequences that set these modes on a terminal in its default state,
// except the screen, margins and style, which the drawing of the screen sets.
func (t *Tracker) Set() string {
	var b strings.Builder
	for _, flags := range t.kitty[t.screen()] {
		fmt.Fprintf(&b, "\x1b[>%du", flags)
	}
	for _, mode := range slices.Sorted(maps.Keys(t.changed)) {
		if mode != 2026 { // a synchronised update ends by itself
			b.WriteString(private(mode, t.changed[mode]))
		}
	}
	if t.modifiers != "" {
		fmt.Fprintf(&b, "\x1b[>%sm", t.modifiers)
	}
	if t.keypad {
		b.WriteString("\x1b=")
	}
	if t.cursor > 0 {
		fmt.Fprintf(&b, "\x1b[%d q", t.cursor)
	}
	return b.String()
}

func private(mode int, on bool) string {
	if on {
		return fmt.Sprintf("\x1b[?%dh", mode)
	}
	return fmt.Sprintf("\x1b[?%dl", mode)
}
