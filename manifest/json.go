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
		d.failAt(position{d.file, 1, 1}, `start the manifest with {"version": 1`, emptyManifest)
		return nil, false
	}
	// The complete grammar is checked first, so that reading tokens cannot fail.
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		d.grammar(data, err)
		return nil, false
	}
	r := &jsonReader{decoder: d, dec: json.NewDecoder(bytes.NewReader(data)), data: data, line: 1, col: 1}
	r.dec.UseNumber()
	n, err := r.value()
	if err != nil {
		fix := ""
		if errors.Is(err, errSurrogate) {
			fix = "write both halves, or the character itself"
		}
		d.failAt(position{d.file, r.line, r.col}, fix, "invalid JSON: %s", err)
		return nil, false
	}
	return n, true
}

// grammar reports why a text is not JSON. It quotes at most one character of the text.
func (d *decoder) grammar(data []byte, err error) {
	var se *json.SyntaxError
	if !errors.As(err, &se) {
		d.failAt(position{d.file, 1, 1}, "", "invalid JSON: %s", err)
		return
	}
	offset, what, fix := max(int(se.Offset)-1, 0), se.Error(), ""
	switch {
	case strings.Contains(what, "unexpected end"):
		offset, what, fix = len(bytes.TrimSpace(data)), "unexpected end of the text", "close the quote or bracket"
	case strings.Contains(what, "max depth"):
		what = errDepth.Error()
	case strings.Contains(what, "after top-level value"):
		what, fix = "unexpected text after the end", "keep one value"
	case strings.Contains(what, "in string literal"):
		what, fix = "unexpected line break or tab in a string", `write \n or \t`
	case data[offset] == '/':
		what, fix = "unexpected comment", "remove comments, or name the file bottle.yaml"
	case strings.Contains(what, "beginning of") && (data[offset] == '}' || data[offset] == ']'):
		what, fix = fmt.Sprintf("unexpected %q", data[offset]), "remove the comma before it"
	case strings.Contains(what, "beginning of value") && len(bytes.TrimSpace(data[:offset])) == 0:
		fix = "start with {, or name a YAML manifest bottle.yaml"
	case strings.Contains(what, "beginning of"):
		fix = "put keys and text in double quotes"
	}
	d.failAt(d.offset(data, offset), fix, "invalid JSON: %s", what)
}

// maxNesting bounds the nesting depth of a JSON manifest.
const maxNesting = 100

var (
	errDepth     = errors.New("nested too deeply")
	errSurrogate = errors.New(`incomplete surrogate pair (\ud800 to \udfff)`)
)

// jsonReader converts valid JSON to the nodes that the YAML library would return.
type jsonReader struct {
	*decoder
	dec   *json.Decoder
	data  []byte
	depth int
	// Start of the last token.
	begin, line, col int
}

// token reads a token and returns a node with its position.
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

// children reads the keys and values of an object or list, and its end.
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

// surrogates rejects half a surrogate pair: encoding/json replaces it, and a secret would
// arrive changed.
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
