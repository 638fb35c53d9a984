package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

var ByteOrderMark = []byte("\ufeff")

// document parses one document. YAML holds nearly all of JSON; what it lacks
// (escaped surrogate pairs) and what it adds (comments, commas behind the last
// value) is why JSON is parsed as JSON.
func (d *decoder) document(data []byte) (*yaml.Node, bool) {
	if offset, what := unreadable(data); what != "" {
		d.failAt(d.offset(data, offset), "%s", what)
		return nil, false
	}
	if strings.EqualFold(filepath.Ext(d.file), ".json") || json.Valid(data) {
		return d.json(data)
	}
	var doc yaml.Node
	err := yaml.Load(data, &doc)
	if err != nil || len(doc.Content) != 1 {
		d.syntax(data, err)
		return nil, false
	}
	return doc.Content[0], true
}

// unreadable finds the first byte that no text has.
func unreadable(data []byte) (offset int, what string) {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return i, "this is not UTF-8: save the manifest in that encoding"
		case r < ' ' && !strings.ContainsRune("\t\r\n", r):
			return i, "a control character, which no manifest may hold as it is: take it out"
		}
		i += size
	}
	return 0, ""
}

// offset is the position of a byte.
func (d *decoder) offset(data []byte, offset int) position {
	before := bytes.TrimPrefix(data[:min(offset, len(data))], ByteOrderMark)
	line := bytes.Count(before, []byte("\n")) + 1
	last := before[bytes.LastIndexByte(before, '\n')+1:]
	return position{d.file, line, utf8.RuneCount(last) + 1}
}

const emptyManifest = "the manifest is empty: begin it with version: 1"

// advice on what the YAML library complains about, by its message.
var advice = map[string]string{
	"mapping values are not allowed in this context": `a colon where none can be: put text that has ": " in quotes, and begin each key on a line of its own`,
	"found unexpected end of stream":                 "the text ends too early: a quote or a bracket is not closed",
	"found unexpected document indicator":            "--- stands within a quote that is not closed",
	"did not find expected key":                      "a key was expected: check that the lines of one mapping are indented alike",
	"did not find expected '-' indicator":            "an entry of a list was expected: check that the lines of one list are indented alike",
	"could not find expected ':'":                    "a colon was expected behind the key before this",
	"did not find expected ',' or '}'":               "a comma or } was expected",
	"did not find expected ',' or ']'":               "a comma or ] was expected",
	"exceeded max depth of 10000":                    "nested too deeply",
}

// syntax tells what keeps the text from being one YAML document. It repeats
// none of it.
func (d *decoder) syntax(data []byte, err error) {
	at := position{d.file, 1, 1}
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		d.failAt(at, "%s", emptyManifest)
		return
	}
	if le.Mark.Line > 0 {
		at.line, at.col = le.Mark.Line, le.Mark.Column
	}
	lines := bytes.Split(data, []byte("\n"))
	message := le.Message
	if i := strings.LastIndex(message, "yaml: "); i >= 0 {
		message = message[i+len("yaml: "):]
	}
	switch {
	case message == "no documents in stream":
		d.failAt(at, "%s", emptyManifest)
	case message == "expected single document, found multiple":
		d.failAt(d.secondDocument(lines), "a second document begins: keep one, and take --- out")
	case strings.HasPrefix(message, "unknown anchor"):
		d.failAt(at, "text that begins with * has to be in quotes (there is no anchor of this name)")
	case message == "found character that cannot start any token" && d.isTab(lines, at):
		d.failAt(at, "a tab cannot indent in YAML: use spaces")
	case message == "found character that cannot start any token":
		d.failAt(at, "text that begins with this character has to be in quotes")
	default:
		if better, ok := advice[message]; ok {
			message = better
		}
		if begin := le.ContextMark.Line; begin > 0 && begin != at.line {
			d.failAt(at, "not valid YAML: %s (in what begins in line %d)", message, begin)
			return
		}
		d.failAt(at, "not valid YAML: %s", message)
	}
}

func (d *decoder) isTab(lines [][]byte, at position) bool {
	if at.line > len(lines) {
		return false
	}
	line := []rune(string(lines[at.line-1]))
	return at.col <= len(line) && line[at.col-1] == '\t'
}

// secondDocument finds the line that ends the first document. A marker at a
// line's beginning does so wherever it stands (YAML 1.2.2, 9.1.2).
func (d *decoder) secondDocument(lines [][]byte) position {
	begun := false
	for i, line := range lines {
		text := strings.TrimRight(string(line), " \t\r")
		marker := text == "---" || strings.HasPrefix(text, "--- ")
		switch {
		case begun && (marker || text == "..."):
			return position{d.file, i + 1, 1}
		case marker, text != "" && text[0] != '#' && text[0] != '%':
			begun = true
		}
	}
	return position{d.file, 1, 1}
}
