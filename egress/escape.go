package egress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// escapeLine escapes the characters of a line of a log that a terminal could obey,
// or that hide others, so that the file can be printed as it is: control
// characters, those that change the direction of text, invalid UTF-8. A JSON
// object has the same value as before. The line is truncated where it would be too
// long for readers of the log.
func escapeLine(line []byte) []byte {
	if len(line) == 0 || line[0] != '{' || !json.Valid(line) {
		return escapeRunes(line, maxLine-1, escapeText)
	}
	var compact bytes.Buffer
	if json.Compact(&compact, line) != nil {
		return nil // cannot happen: it is valid
	}
	// There is no white space now, so that all of these characters are in strings.
	const all = 6 * maxLine
	if out := escapeRunes(compact.Bytes(), all, escapeJSON); len(out) < maxLine {
		return out
	}
	return escapeMembers(compact.Bytes())
}

// escapeMembers escapes as many members of a JSON object as fit a line.
func escapeMembers(object []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(object))
	_, _ = dec.Token() // the brace; the object is valid
	out := []byte{'{'}
	for dec.More() {
		start := dec.InputOffset()
		var value json.RawMessage
		if _, err := dec.Token(); err != nil || dec.Decode(&value) != nil {
			break
		}
		member := escapeRunes(bytes.TrimPrefix(object[start:dec.InputOffset()], []byte(",")), 6*maxLine, escapeJSON)
		if len(out)+len(",")+len(member)+len("}\n") > maxLine {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, member...)
	}
	return append(out, '}')
}

// escapeRunes escapes unprintable characters, up to a length.
func escapeRunes(text []byte, most int, escape func(out []byte, r rune, raw []byte) []byte) []byte {
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		end := len(out)
		if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) {
			out = escape(out, r, text[:n])
		} else {
			out = append(out, text[:n]...)
		}
		if len(out) > most {
			return out[:end]
		}
		text = text[n:]
	}
	return out
}

func escapeJSON(out []byte, r rune, _ []byte) []byte {
	if r1, r2 := utf16.EncodeRune(r); r1 != unicode.ReplacementChar {
		return fmt.Appendf(out, `\u%04x\u%04x`, r1, r2)
	}
	return fmt.Appendf(out, `\u%04x`, r)
}

// escapeText keeps tabs, with which the lines of a stack trace begin.
func escapeText(out []byte, r rune, raw []byte) []byte {
	switch {
	case r == '\t':
		return append(out, '\t')
	case len(raw) == 1:
		return fmt.Appendf(out, `\x%02x`, raw[0])
	case r > 0xffff:
		return fmt.Appendf(out, `\U%08x`, r)
	}
	return fmt.Appendf(out, `\u%04x`, r)
}
