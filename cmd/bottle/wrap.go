package main

import (
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// wrapped returns a writer to w of a table, which must end with a line break. If w is a
// terminal, longer lines are broken between words: the terminal itself would break them within
// words.
func wrapped(w io.Writer) io.Writer {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return w
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return w
	}
	return &wrapWriter{w: w, width: width}
}

type wrapWriter struct {
	w     io.Writer
	width int // in columns
	// line is the beginning of an incomplete line: a tabwriter writes single cells.
	line string
}

// Write implements io.Writer.
func (w *wrapWriter) Write(p []byte) (int, error) {
	var b strings.Builder
	for part := range strings.Lines(string(p)) {
		w.line += part
		if strings.HasSuffix(w.line, "\n") {
			b.WriteString(wrapLine(w.line, w.width))
			w.line = ""
		}
	}
	if _, err := io.WriteString(w.w, b.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Continued lines of a table are aligned with its last column if that begins in the first
// half of the line, and are otherwise indented by this.
const continuation = "    "

// wrapLine breaks a line at its spaces. A word that is longer than a line, such as a digest,
// stays in one piece.
func wrapLine(line string, width int) string {
	text := strings.TrimRight(line, "\n")
	if utf8.RuneCountInString(text) <= width {
		return line
	}
	indent := continuation
	if at := lastColumn(text); at > 0 && at <= width/2 {
		indent = strings.Repeat(" ", at)
	}
	var b strings.Builder
	rest, start := text, leadingSpaces(text)
	for utf8.RuneCountInString(rest) > width {
		at := breakAt(rest, width, max(start, 1))
		if at < 0 {
			break
		}
		b.WriteString(strings.TrimRight(rest[:at], " ") + "\n")
		rest, start = indent+strings.TrimLeft(rest[at:], " "), len(indent)
	}
	b.WriteString(rest + line[len(text):])
	return b.String()
}

// lastColumn returns the column, in runes, after the last two spaces within the text.
func lastColumn(text string) int {
	trimmed := strings.TrimRight(text, " ")
	at := strings.LastIndex(trimmed, "  ")
	if at < leadingSpaces(text) {
		return leadingSpaces(text)
	}
	return utf8.RuneCountInString(trimmed[:at+2])
}

func leadingSpaces(text string) int { return len(text) - len(strings.TrimLeft(text, " ")) }

// breakAt returns the index of the last space at which at most width columns precede, or, if
// there is none, of the first one; -1: there is no space after the index from.
func breakAt(text string, width, from int) int {
	best, column := -1, 0
	for i, r := range text {
		if r == ' ' && i >= from {
			if column > width && best >= 0 {
				return best
			}
			best = i
			if column > width {
				return best
			}
		}
		column++
	}
	if strings.TrimSpace(text[max(best, 0):]) == "" {
		return -1
	}
	return best
}
