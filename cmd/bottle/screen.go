package main

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// A terminal's title is set, kept and brought back by control sequences that draw
// nothing (xterm's ctlseqs, "Operating System Commands" and "Window manipulation");
// a terminal that has no titles takes no notice.
const (
	titleSet  = "\x1b]2;"
	titleEnd  = "\a"
	titlePush = "\x1b[22;2t"
	titlePop  = "\x1b[23;2t"
)

// How long a notice stays in the title, and the least time between two of them.
const (
	noticeTime  = 30 * time.Second
	noticePause = time.Second
)

// screen passes on what an agent writes to the terminal, and tells something on
// the side, in the terminal's title. Not a byte of its own comes between the bytes
// of a character or of a control sequence of the agent's. What is told gives way
// to the agent's title after a while; close brings back the title as it was.
type screen struct {
	out io.Writer
	now func() time.Time

	mu     sync.Mutex
	agent  sequence
	own    string // what is told now; empty: nothing
	stale  bool   // the terminal's title is another than it should be
	pushed bool   // the terminal keeps the title that was there before
	title  string // the last that the agent has set since then
	told   time.Time
	calm   *time.Timer
}

func newScreen(out io.Writer) *screen { return &screen{out: out, now: time.Now} }

// hasTitle tells by its name whether a terminal has one; those that have none show
// the text, or ring.
func hasTitle(term string) bool {
	return !slices.Contains([]string{"", "dumb", "linux", "cons25", "emacs", "ansi"}, term) && !strings.HasPrefix(term, "vt")
}

// Write implements io.Writer for what the agent writes.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wrote := 0
	for {
		// All of it, or as far as there is a place for ours.
		n := wrote
		for n < len(p) && (!s.stale || !s.agent.between()) {
			if title, ok := s.agent.next(p[n]); ok {
				s.title, s.stale = title, s.own != ""
			}
			n++
		}
		if n > wrote {
			m, err := s.out.Write(p[wrote:n])
			if wrote += m; err != nil {
				return wrote, err
			}
		}
		if err := s.flush(); err != nil || wrote == len(p) {
			return wrote, err
		}
	}
}

// flush sets the title, if the agent's output is between two characters.
func (s *screen) flush() error {
	if !s.stale || !s.agent.between() {
		return nil
	}
	s.stale = false
	_, err := io.WriteString(s.out, s.change())
	return err
}

// change is what makes the terminal's title what it should be.
func (s *screen) change() string {
	text := ""
	switch {
	case s.own != "":
		if !s.pushed {
			text, s.pushed, s.title = titlePush, true, ""
		}
		return text + titleSet + s.own + titleEnd
	case s.pushed:
		text, s.pushed = titlePop, false
		if s.title != "" {
			text += titleSet + s.title + titleEnd
		}
	}
	return text
}

// tell shows a text that has no control characters. One that follows too soon is
// left out, so that an agent that is refused all the time does not make the title
// flicker.
func (s *screen) tell(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if now.Sub(s.told) < noticePause {
		return
	}
	s.told, s.own, s.stale = now, text, true
	_ = s.flush() // a terminal that is gone is the session's affair
	if s.calm != nil {
		s.calm.Stop()
	}
	s.calm = time.AfterFunc(noticeTime, s.rest)
}

// rest gives the title back to the agent.
func (s *screen) rest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.own, s.stale = "", true
	_ = s.flush()
}

// close ends what is told. The agent has written its last.
func (s *screen) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.calm != nil {
		s.calm.Stop()
	}
	s.own, s.stale = "", false
	back := s.change()
	if back != "" && !s.agent.between() {
		back = "\x1b\\" + back // ends what the agent has left open
	}
	_, _ = io.WriteString(s.out, back)
}

// sequence follows a terminal's input, in UTF-8, as far as is needed to know where
// a control sequence or a character begins and ends (ECMA-48; the states are those
// of every terminal's parser).
type sequence struct {
	state state
	left  int // bytes of a character
	text  []byte
}

type state int

const (
	ground state = iota
	char         // within a character of several bytes
	escape       // after ESC
	inter        // after ESC and an intermediate byte
	csi          // within ESC [ …
	osc          // within ESC ] …, which BEL or ST ends
	str          // within another string, which ST ends
	oscEsc       // after ESC in one of them
	strEsc
)

// maxTitle bounds what is remembered of an agent's title, in bytes.
const maxTitle = 1 << 10

const (
	bel = 0x07
	can = 0x18
	sub = 0x1a
	esc = 0x1b
)

func (q *sequence) between() bool { return q.state == ground }

// next takes a byte. A title is what the byte has set, if it ended that.
func (q *sequence) next(b byte) (title string, set bool) {
	switch q.state {
	case ground:
		q.begin(b)
	case char:
		if b&0xc0 != 0x80 { // cut short
			q.begin(b)
		} else if q.left--; q.left == 0 {
			q.state = ground
		}
	case osc, oscEsc:
		return q.inOSC(b)
	case str:
		switch b {
		case esc:
			q.state = strEsc
		case can, sub:
			q.state = ground
		}
	case strEsc:
		q.afterEscape(b) // ST, or another sequence, which ends the string too
	default:
		q.inSequence(b)
	}
	return "", false
}

// begin takes the first byte of something.
func (q *sequence) begin(b byte) {
	q.state, q.left = char, 0
	switch {
	case b == esc:
		q.state = escape
	case b >= 0xf0:
		q.left = 3
	case b >= 0xe0:
		q.left = 2
	case b >= 0xc2:
		q.left = 1
	default:
		q.state = ground
	}
}

// inSequence takes a byte after ESC, an intermediate byte or within ESC [ ….
func (q *sequence) inSequence(b byte) {
	switch {
	case b == esc:
		q.state = escape
	case b == can || b == sub:
		q.state = ground
	case b < 0x20: // obeyed in the middle of it
	case q.state == escape:
		q.afterEscape(b)
	case q.state == inter && b >= 0x30, q.state == csi && b >= 0x40:
		q.state = ground
	}
}

func (q *sequence) afterEscape(b byte) {
	switch {
	case b == '[':
		q.state = csi
	case b == ']':
		q.state, q.text = osc, q.text[:0]
	case b == 'P' || b == 'X' || b == '^' || b == '_':
		q.state = str
	case b == esc:
		q.state = escape
	case b >= 0x20 && b < 0x30:
		q.state = inter
	default:
		q.state = ground
	}
}

func (q *sequence) inOSC(b byte) (title string, set bool) {
	if q.state == oscEsc {
		q.afterEscape(b)
		if b == '\\' {
			return q.titled()
		}
		return "", false
	}
	switch b {
	case bel:
		q.state = ground
		return q.titled()
	case esc:
		q.state = oscEsc
	case can, sub:
		q.state = ground
	default:
		if len(q.text) < maxTitle {
			q.text = append(q.text, b)
		}
	}
	return "", false
}

// titled is the title that an operating system command has set, without what a
// terminal would obey: it is given back when the agent is gone.
func (q *sequence) titled() (string, bool) {
	kind, text, ok := bytes.Cut(q.text, []byte(";"))
	if !ok || string(kind) != "0" && string(kind) != "2" {
		return "", false
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(text), "")), true
}
