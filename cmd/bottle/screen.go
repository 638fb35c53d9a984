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

// Control sequences that set, save and restore a terminal's title (xterm's ctlseqs,
// "Operating System Commands" and "Window manipulation"). They draw nothing, and a
// terminal without titles ignores them.
const (
	titleSet  = "\x1b]2;"
	titleEnd  = "\a"
	titlePush = "\x1b[22;2t"
	titlePop  = "\x1b[23;2t"
)

// How long a notice stays in the title, and the least time between two notices.
const (
	noticeTime  = 30 * time.Second
	noticePause = time.Second
)

// screen forwards an agent's output to the terminal and shows notices in the
// terminal's title. It never writes between the bytes of a character or of a
// control sequence of the agent. After noticeTime it restores the agent's title;
// close restores the original one.
type screen struct {
	out io.Writer
	now func() time.Time

	mu     sync.Mutex
	agent  sequence
	notice string // shown now, or empty
	stale  bool   // the terminal's title is out of date
	pushed bool   // the terminal has saved its original title
	title  string // the last title that the agent has set since then
	shown  time.Time
	expiry *time.Timer
}

func newScreen(out io.Writer) *screen { return &screen{out: out, now: time.Now} }

// hasTitle reports whether a terminal of this name has a title. Others would print
// the text or ring the bell.
func hasTitle(term string) bool {
	return !slices.Contains([]string{"", "dumb", "linux", "cons25", "emacs", "ansi"}, term) && !strings.HasPrefix(term, "vt")
}

// Write implements io.Writer for the agent's output.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wrote := 0
	for {
		// Everything, or up to a place where the title can be changed.
		n := wrote
		for n < len(p) && (!s.stale || !s.agent.between()) {
			if title, ok := s.agent.next(p[n]); ok {
				s.title, s.stale = title, s.notice != ""
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

// flush updates the title if the agent's output is between two characters.
func (s *screen) flush() error {
	if !s.stale || !s.agent.between() {
		return nil
	}
	s.stale = false
	_, err := io.WriteString(s.out, s.change())
	return err
}

// change returns the control sequences that update the terminal's title.
func (s *screen) change() string {
	text := ""
	switch {
	case s.notice != "":
		if !s.pushed {
			text, s.pushed, s.title = titlePush, true, ""
		}
		return text + titleSet + s.notice + titleEnd
	case s.pushed:
		text, s.pushed = titlePop, false
		if s.title != "" {
			text += titleSet + s.title + titleEnd
		}
	}
	return text
}

// show shows a text without control characters. A text that follows another within
// noticePause is dropped, so that frequent refusals do not make the title flicker.
func (s *screen) show(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if now.Sub(s.shown) < noticePause {
		return
	}
	s.shown, s.notice, s.stale = now, text, true
	_ = s.flush() // the session reports a terminal that is gone
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.expiry = time.AfterFunc(noticeTime, s.expire)
}

// expire restores the agent's title.
func (s *screen) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notice, s.stale = "", true
	_ = s.flush()
}

// close restores the original title. The agent must have ended.
func (s *screen) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expiry != nil {
		s.expiry.Stop()
	}
	s.notice, s.stale = "", false
	back := s.change()
	if back != "" && !s.agent.between() {
		back = "\x1b\\" + back // ends a sequence that the agent left open
	}
	_, _ = io.WriteString(s.out, back)
}

// sequence parses a terminal's input, in UTF-8, to find where control sequences and
// characters begin and end (ECMA-48).
type sequence struct {
	state state
	left  int // remaining bytes of a character
	text  []byte
}

type state int

const (
	ground state = iota
	char         // in a character of several bytes
	escape       // after ESC
	inter        // after ESC and an intermediate byte
	csi          // in ESC [ …
	osc          // in ESC ] …, which BEL or ST ends
	str          // in another string, which ST ends
	oscEsc       // after ESC in osc
	strEsc       // after ESC in str
)

// maxTitle is the longest title of an agent that is remembered, in bytes.
const maxTitle = 1 << 10

const (
	bel = 0x07
	can = 0x18
	sub = 0x1a
	esc = 0x1b
)

func (q *sequence) between() bool { return q.state == ground }

// next parses a byte. If the byte ends a sequence that sets a title, it returns
// the title.
func (q *sequence) next(b byte) (title string, set bool) {
	switch q.state {
	case ground:
		q.begin(b)
	case char:
		if b&0xc0 != 0x80 { // truncated character
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

// begin parses the first byte of a character or control sequence.
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

// inSequence parses a byte after ESC, after an intermediate byte or in ESC [ ….
func (q *sequence) inSequence(b byte) {
	switch {
	case b == esc:
		q.state = escape
	case b == can || b == sub:
		q.state = ground
	case b < 0x20: // executed without ending the sequence
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
			return q.parsedTitle()
		}
		return "", false
	}
	switch b {
	case bel:
		q.state = ground
		return q.parsedTitle()
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

// parsedTitle returns the title that an operating system command has set, without
// control characters: it is written to the terminal again later.
func (q *sequence) parsedTitle() (string, bool) {
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
