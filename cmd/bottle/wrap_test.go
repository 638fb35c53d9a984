package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/creack/pty"

	"github.com/bot-bottle/bottle"
)

func TestWrapLine(t *testing.T) {
	for _, tt := range []struct {
		name, line, want string
		width            int
	}{
		{"short", "a b c\n", "a b c\n", 5},
		{"exact word", "one two three\n", "one two\n    three\n", 9},
		{"no line break at the end", "one two three", "one two\n    three", 9},
		{"aligned", "  key  some longer value here\n", "  key  some longer\n       value here\n", 20},
		{"column in the second half", "a quite long key  a value\n", "a quite long key  a\n    value\n", 20},
		{"no spaces", "abcdefghij\n", "abcdefghij\n", 4},
		{"long word first", "abcdefghij kl\n", "abcdefghij\n    kl\n", 6},
		{"long word later", "ab cdefghijkl mn\n", "ab\n    cdefghijkl\n    mn\n", 8},
		{"runes", "éééé éééé\n", "éééé éééé\n", 9},
		{"indented list", "  - one two three four\n", "  - one two\n  three four\n", 12},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := wrapLine(tt.line, tt.width); got != tt.want {
				t.Errorf("got\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

// TestPlanAt60Columns prints the plan on a terminal of 60 columns: no word is broken, and none
// is lost. The control is the same plan elsewhere, which has longer lines.
func TestPlanAt60Columns(t *testing.T) {
	at60Columns(t, func(w io.Writer) error { return printPlan(w, fullPlan(), "approved on 2026-01-02") })
}

// TestTablesAt60Columns does the same with tables, and with the help, which a new user reads first.
func TestTablesAt60Columns(t *testing.T) {
	list := []bottle.Status{{Name: "claude-bottle-impl", Agent: "impl", Image: "registry.example/agents/claude:latest", Runtime: "runsc", Status: "running, proxy is gone"}}
	at60Columns(t, func(w io.Writer) error { return (&app{stdout: w}).printList(list) })
	for _, args := range [][]string{{"--help"}, {"run", "--help"}, {"help", "setup"}} {
		at60Columns(t, func(w io.Writer) error {
			if code := run(t.Context(), args, strings.NewReader(""), w, w); code != 0 {
				return exitError(code)
			}
			return nil
		})
	}
}

func at60Columns(t *testing.T, print func(io.Writer) error) {
	t.Helper()
	const width = 60
	var plain strings.Builder
	if err := print(&plain); err != nil {
		t.Fatal(err)
	}
	terminal, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = errors.Join(terminal.Close(), tty.Close()) }()
	if err := pty.Setsize(terminal, &pty.Winsize{Rows: 50, Cols: width}); err != nil {
		t.Fatal(err)
	}
	printed := make(chan error, 1)
	go func() {
		err := print(tty)
		_, werr := io.WriteString(tty, "END\n")
		printed <- errors.Join(err, werr)
	}()
	var got strings.Builder
	for buf := make([]byte, 4096); !strings.HasSuffix(got.String(), "END\r\n"); {
		n, err := terminal.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got.Write(buf[:n])
	}
	if err := <-printed; err != nil {
		t.Fatal(err)
	}
	text := strings.TrimSuffix(strings.ReplaceAll(got.String(), "\r\n", "\n"), "END\n")
	if want := strings.Fields(plain.String()); !slices.Equal(strings.Fields(text), want) {
		t.Errorf("the words differ:\n%s\nwant\n%s", text, &plain)
	}
	longest := 0
	for line := range strings.SplitSeq(plain.String(), "\n") {
		longest = max(longest, utf8.RuneCountInString(line))
	}
	if longest <= width {
		t.Errorf("control: the longest line has %d columns", longest)
	}
	for line := range strings.SplitSeq(text, "\n") {
		if utf8.RuneCountInString(line) > width && strings.Contains(strings.TrimSpace(line), " ") {
			t.Errorf("longer than the terminal: %q", line)
		}
	}
}

// FuzzWrapLine: wrapping adds and removes only spaces and line breaks, and a line is longer than
// the width only if it has one word.
func FuzzWrapLine(f *testing.F) {
	f.Add("  network  internal 10.77.0.0/30 to the proxy only", uint8(20))
	f.Add("a  b   c    d", uint8(1))
	f.Fuzz(func(t *testing.T, line string, w uint8) {
		width := int(w)%120 + 1
		if strings.ContainsAny(line, "\n\r\t\v\f") || !utf8.ValidString(line) {
			return
		}
		got := wrapLine(line, width)
		if strings.ReplaceAll(strings.ReplaceAll(got, "\n", ""), " ", "") != strings.ReplaceAll(line, " ", "") {
			t.Fatalf("%q became %q", line, got)
		}
		for part := range strings.SplitSeq(got, "\n") {
			if utf8.RuneCountInString(strings.TrimRight(part, " ")) > width && strings.Contains(strings.Trim(part, " "), " ") {
				t.Errorf("width %d: long line %q of %q", width, part, line)
			}
		}
	})
}
