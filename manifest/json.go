package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// json parses a JSON document.
func (d *decoder) json(data []byte) (*yaml.Node, bool) {
	data = bytes.TrimPrefix(data, ByteOrderMark)
	if len(bytes.TrimSpace(data)) == 0 {
		d.failAt(position{d.file, 1, 1}, `the manifest is empty: begin it with {"version": 1`)
		return nil, false
	}
	// The whole grammar is checked here, so that reading tokens cannot fail.
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		d.grammar(data, err)
		return nil, false
	}
	r := &jsonReader{decoder: d, dec: json.NewDecoder(bytes.NewReader(data)), data: data, line: 1, col: 1}
	r.dec.UseNumber()
	n, err := r.value()
	if err != nil {
		d.failAt(position{d.file, r.line, r.col}, "not valid JSON: %s", err)
		return nil, false
	}
	return n, true
}

// grammar tells why a text is no JSON. Of the text it repeats one character.
func (d *decoder) grammar(data []byte, err error) {
	var se *json.SyntaxError
	if !errors.As(err, &se) {
		d.failAt(position{d.file, 1, 1}, "not valid JSON: %s", err)
		return
	}
	offset, what := max(int(se.Offset)-1, 0), se.Error()
	switch {
	case strings.Contains(what, "unexpected end"):
		offset, what = len(bytes.TrimSpace(data)), "the text ends too early: a quote or a bracket is not closed"
	case strings.Contains(what, "max depth"):
		what = errDepth.Error()
	case strings.Contains(what, "after top-level value"):
		what = "more text behind the manifest's end: keep one value"
	case strings.Contains(what, "in string literal"):
		what = `a line break or a tab in quotes: write \n or \t`
	case data[offset] == '/':
		what = "JSON has no comments: take them out, or name the file bottle.yaml"
	case strings.Contains(what, "beginning of") && (data[offset] == '}' || data[offset] == ']'):
		what = fmt.Sprintf("%q where a value should be: take out the comma before it", data[offset])
	case strings.Contains(what, "beginning of value") && len(bytes.TrimSpace(data[:offset])) == 0:
		what += ": JSON begins with {; a manifest in YAML is to be named bottle.yaml"
	case strings.Contains(what, "beginning of"):
		what += ": keys and text have to be in double quotes"
	}
	d.failAt(d.offset(data, offset), "not valid JSON: %s", what)
}

// maxNesting bounds how deeply a JSON manifest nests.
const maxNesting = 100

var (
	errDepth     = errors.New("nested too deeply")
	errSurrogate = errors.New(`this text has one half of a surrogate pair (\ud800 to \udfff): write both, or the character itself`)
)

// jsonReader makes of valid JSON the nodes that the YAML library would make.
type jsonReader struct {
	*decoder
	dec   *json.Decoder
	data  []byte
	depth int
	// Where the last token begins.
	begin, line, col int
}

// token reads a token, and makes a node of where it begins.
func (r *jsonReader) token() (json.Token, *yaml.Node, error) {
	begin := int(r.dec.InputOffset())
	for begin < len(r.data) && strings.IndexByte(" \t\r\n,:", r.data[begin]) >= 0 {
		begin++
	}
	for _, c := range string(r.data[r.begin:begin]) {
		if r.col++; c == '\n' {
			r.line, r.col = r.line+1, 1
		}
	}
	r.begin = begin
	t, err := r.dec.Token()
	return t, &yaml.Node{Kind: yaml.ScalarNode, Line: r.line, Column: r.col}, err
}

func (r *jsonReader) value() (*yaml.Node, error) {
	t, n, err := r.token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case json.Delim:
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if t == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		return n, r.children(n)
	case string:
		n.Tag, n.Value = "!!str", t
		return n, r.surrogates(t)
	case json.Number:
		n.Tag, n.Value = "!!int", t.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case bool:
		n.Tag, n.Value = "!!bool", strconv.FormatBool(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}

// children reads what an object or a list holds, keys too, and its end.
func (r *jsonReader) children(n *yaml.Node) error {
	if r.depth++; r.depth > maxNesting {
		return errDepth
	}
	for r.dec.More() {
		child, err := r.value()
		if err != nil {
			return err
		}
		n.Content = append(n.Content, child)
	}
	r.depth--
	_, err := r.dec.Token()
	return err
}

// surrogates refuses half a pair: encoding/json puts a replacement character
// in its place, and a secret would arrive changed.
func (r *jsonReader) surrogates(s string) error {
	const replacement = "\ufffd"
	if !strings.Contains(s, replacement) {
		return nil
	}
	raw := strings.ToLower(string(r.data[r.begin:r.dec.InputOffset()]))
	raw = strings.ReplaceAll(raw, `\\`, "")
	if strings.Count(s, replacement) > strings.Count(raw, replacement)+strings.Count(raw, `\ufffd`) {
		return errSurrogate
	}
	return nil
}
