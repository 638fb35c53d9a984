package guest

import (
	"strings"
	"testing"
	"time"

	proto "github.com/bot-bottle/bottle/internal/sessionproto"
)

func screenOf(output string) *screen {
	s := newScreen(proto.Size{Width: 40, Height: 10}, func([]byte) {})
	s.write([]byte(output))
	return s
}

// TestRedraw draws a screen on another terminal, which then shows the same.
func TestRedraw(t *testing.T) {
	for name, output := range map[string]string{
		"nothing":          "",
		"lines":            "one\r\ntwo\r\n\r\nfour",
		"full":             strings.Repeat("line\r\n", 30) + "last",
		"full line":        strings.Repeat("x", 40),
		"alternate screen": "before\r\n\x1b[?1049h\x1b[5;7Hinside",
		"left again":       "before\r\n\x1b[?1049h\x1b[5;7Hinside\x1b[?1049l",
		"colours":          "\x1b[1;31mred\x1b[m \x1b[48;5;21mblue\x1b[m \x1b[38;2;1;2;3mrgb",
		"wide":             "日本語 ünï e\u0301 👍\r\n\x1b[5C日",
		"modes":            "\x1b[?25l\x1b[?1000h\x1b[?1006h\x1b[?2004h\x1b[>1u",
		"margins":          "\x1b[3;6r\x1b[3;1Ha\r\nb\r\nc\r\nd\r\ne\r\nf",
		"hyperlink":        "\x1b]8;;https://a.test/\x1b\\link\x1b]8;;\x1b\\",
		"cut off":          "text\x1b]2;tit",
	} {
		s := screenOf(output)
		drawn := screenOf(string(s.redraw()))
		if got, want := drawn.vt.Render(), s.vt.Render(); got != want {
			t.Errorf("%s: drawn\n%q\nwant\n%q", name, got, want)
		}
		if got, want := drawn.vt.CursorPosition(), s.vt.CursorPosition(); got != want {
			t.Errorf("%s: cursor at %v, want %v", name, got, want)
		}
		if got, want := drawn.modes.Set(), s.modes.Set(); got != want || drawn.modes.Alternate() != s.modes.Alternate() {
			t.Errorf("%s: modes %q, want %q", name, got, want)
		}
	}
}

func TestTitleIsRedrawn(t *testing.T) {
	if out := string(screenOf("\x1b]2;the title\a").redraw()); !strings.Contains(out, "\x1b]2;the title\a") {
		t.Errorf("no title in %q", out)
	}
}

// TestQuestions asks the terminal many questions in one write: they are answered if the
// program reads, and never block it.
func TestQuestions(t *testing.T) {
	answers := make(chan string, 1000)
	hold := make(chan struct{})
	s := newScreen(proto.Size{}, func(data []byte) { <-hold; answers <- string(data) })
	s.write([]byte(strings.Repeat("\x1b[6n", 500))) // with the reader blocked
	close(hold)
	select {
	case a := <-answers:
		if !strings.HasPrefix(a, "\x1b[1;1R") {
			t.Errorf("the cursor's position is %q", a)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("no answer")
	}
}

// FuzzScreen: no output of the agent ends PID 1, and a redrawn screen can be drawn.
func FuzzScreen(f *testing.F) {
	f.Add([]byte("\x1b[?1049h\x1b[5;7Htext\x1b[2J\x1b[999;999H\x1b[1000@\x1b#8"), uint16(3), uint16(2))
	f.Fuzz(func(_ *testing.T, output []byte, width, height uint16) {
		s := screenOf("")
		s.write(output)
		s.resize(proto.Size{Width: width % 300, Height: height % 300})
		s.write(output)
		screenOf(string(s.redraw()))
	})
}
