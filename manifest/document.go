package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
)

// ByteOrderMark is U+FEFF in UTF-8, which some editors write at the start of a file.
var ByteOrderMark = []byte("\ufeff")

// document parses one document. YAML is nearly a superset of JSON, but JSON is parsed as
// JSON because YAML lacks escaped surrogate pairs and allows comments and trailing
// commas.
func (d *decoder) document(data []byte) (*yaml.Node, bool) {
	if offset, what, fix := unreadable(data); what != "" {
		d.failAt(d.offset(data, offset), fix, "%s", what)
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

// unreadable finds the first byte that is invalid in a text file.
func unreadable(data []byte) (offset int, what, fix string) {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return i, "invalid UTF-8", "save the manifest as UTF-8"
		case r < ' ' && !strings.ContainsRune("\t\r\n", r):
			return i, "unexpected control character", "remove it, or escape it in quotes"
		}
		i += size
	}
	return 0, "", ""
}

// offset returns the position of a byte.
func (d *decoder) offset(data []byte, offset int) position {
	before := bytes.TrimPrefix(data[:min(offset, len(data))], ByteOrderMark)
	line := bytes.Count(before, []byte("\n")) + 1
	last := before[bytes.LastIndexByte(before, '\n')+1:]
	return position{d.file, line, utf8.RuneCount(last) + 1}
}

const (
	emptyManifest = "empty manifest"
	startManifest = "start the manifest with version: 1"
)

// yamlErrors maps messages of the YAML library to an error and a hint.
var yamlErrors = map[string][2]string{
	"mapping values are not allowed in this context": {"unexpected colon", `put text that contains ": " in quotes, and start each key on a line of its own`},
	"found unexpected end of stream":                 {"unexpected end of the text", "close the quote or bracket"},
	"found unexpected document indicator":            {"unexpected --- in a quoted text", "close the quote"},
	"did not find expected key":                      {"missing key", "indent all lines of a mapping alike"},
	"did not find expected '-' indicator":            {"missing list entry", "indent all lines of a list alike"},
	"could not find expected ':'":                    {"missing colon after the previous key", ""},
	"did not find expected ',' or '}'":               {"missing comma or }", ""},
	"did not find expected ',' or ']'":               {"missing comma or ]", ""},
	"exceeded max depth of 10000":                    {"nested too deeply", ""},
}

// syntax reports why the text is not a single YAML document. It does not quote the text.
func (d *decoder) syntax(data []byte, err error) {
	at := position{d.file, 1, 1}
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		d.failAt(at, startManifest, emptyManifest)
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
		d.failAt(at, startManifest, emptyManifest)
	case message == "expected single document, found multiple":
		d.failAt(d.secondDocument(lines), "keep one document and remove ---", "unexpected second document")
	case strings.HasPrefix(message, "unknown anchor"):
		d.failAt(at, "put text that begins with * in quotes", "unknown anchor")
	case message == "found character that cannot start any token" && d.isTab(lines, at):
		d.failAt(at, "use spaces", "unexpected tab in the indentation")
	case message == "found character that cannot start any token":
		d.failAt(at, "put text that begins with this character in quotes", "unexpected character")
	default:
		fix := ""
		if known, ok := yamlErrors[message]; ok {
			message, fix = known[0], known[1]
		}
		if begin := le.ContextMark.Line; begin > 0 && begin != at.line {
			message += fmt.Sprintf(" (in the block that starts in line %d)", begin)
		}
		d.failAt(at, fix, "invalid YAML: %s", message)
	}
}

func (d *decoder) isTab(lines [][]byte, at position) bool {
	if at.line > len(lines) {
		return false
	}
	line := []rune(string(lines[at.line-1]))
	return at.col <= len(line) && line[at.col-1] == '\t'
}

// secondDocument finds the line that ends the first document: any line that begins with a
// marker, even within other syntax (YAML 1.2.2, 9.1.2).
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
