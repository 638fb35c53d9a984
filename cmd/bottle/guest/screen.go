package guest

import (
	"fmt"
	"strings"

	uv "github.com/charmbracelet/ultraviolet"
	"github.com/charmbracelet/x/vt"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/internal/termmodes"
)

// scrollback is the number of lines above the screen that a client gets.
const scrollback = 1000

// maxSize bounds the terminal's size in each direction, and with it the memory of the
// screen, which counts towards the agent's limit.
const maxSize = 1000

// screen is what a terminal would show of a session's output. It is not safe for
// concurrent use, except the replies.
type screen struct {
	size   proto.Size
	vt     *vt.Emulator
	modes  *termmodes.Tracker
	title  string
	answer func([]byte) // answers the program's questions to the terminal
}

// newScreen returns an empty screen. answer is called from another goroutine.
func newScreen(size proto.Size, answer func([]byte)) *screen {
	s := &screen{size: bounded(size), answer: answer, modes: termmodes.New()}
	s.begin()
	return s
}

func bounded(size proto.Size) proto.Size {
	if size.Width == 0 || size.Height == 0 {
		return proto.Size{Width: 80, Height: 24}
	}
	return proto.Size{Width: min(size.Width, maxSize), Height: min(size.Height, maxSize)}
}

// begin replaces the emulator by an empty one.
func (s *screen) begin() {
	e := vt.NewEmulator(int(s.size.Width), int(s.size.Height))
	e.SetScrollbackSize(scrollback)
	e.SetCallbacks(vt.Callbacks{Title: func(title string) { s.title = title }})
	if s.vt != nil {
		_ = s.vt.Close() // ends the goroutine below
	}
	s.vt = e
	// The emulator blocks until its answers are read, with the holder's lock held, and
	// answering needs that lock.
	answers := make(chan []byte, 64)
	go func() {
		defer close(answers)
		buf := make([]byte, 1<<10)
		for {
			n, err := e.Read(buf)
			if err != nil {
				return
			}
			select {
			case answers <- append([]byte{}, buf[:n]...):
			default: // a program that asks and does not read gets no answer
			}
		}
	}()
	go func() {
		for data := range answers {
			s.answer(data)
		}
	}()
}

// write follows the program's output. The agent chooses it, and an error of the emulator
// must not end PID 1: then the screen begins again, empty.
func (s *screen) write(p []byte) {
	defer func() {
		if recover() != nil {
			s.begin()
		}
	}()
	_, _ = s.modes.Write(p)
	_, _ = s.vt.Write(p)
}

// close ends what follows the emulator.
func (s *screen) close() { _ = s.vt.Close() }

func (s *screen) resize(size proto.Size) {
	defer func() {
		if recover() != nil {
			s.begin()
		}
	}()
	s.size = bounded(size)
	s.vt.Resize(int(s.size.Width), int(s.size.Height))
}

// redraw returns what draws the screen on a terminal in its default state.
func (s *screen) redraw() (out []byte) {
	defer func() {
		if recover() != nil {
			s.begin()
			out = []byte("\x1b[m\x1b[H\x1b[2J" + s.modes.Set())
		}
	}()
	var b strings.Builder
	b.WriteString("\x1b[m\x1b[r")
	if s.modes.Alternate() {
		b.WriteString("\x1b[?1049h")
	}
	b.WriteString("\x1b[H\x1b[2J")
	if !s.modes.Alternate() && s.vt.ScrollbackLen() > 0 {
		// These lines scroll into the terminal's own memory.
		for _, line := range s.vt.Scrollback().Lines() {
			b.WriteString(line.Render() + "\x1b[m\r\n")
		}
		b.WriteString(strings.Repeat("\n", int(s.size.Height)-1) + "\x1b[H\x1b[2J")
	}
	for y := range int(s.size.Height) {
		if line := s.line(y).Render(); line != "" {
			fmt.Fprintf(&b, "\x1b[%d;1H%s\x1b[m", y+1, line)
		}
	}
	if s.title != "" {
		b.WriteString("\x1b]2;" + proto.Printable(s.title) + "\a")
	}
	b.WriteString(s.modes.Set())
	at := s.vt.CursorPosition()
	fmt.Fprintf(&b, "\x1b[%d;%dH", at.Y+1, at.X+1)
	return []byte(b.String())
}

func (s *screen) line(y int) uv.Line {
	line := make(uv.Line, 0, s.size.Width)
	for x := range int(s.size.Width) {
		if cell := s.vt.CellAt(x, y); cell != nil {
			line = append(line, *cell)
		}
	}
	return line
}
