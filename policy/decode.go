package policy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/nearest"
)

// decoder walks a YAML document and collects all errors. Unlike a manifest, a policy has
// neither anchors nor aliases.
type decoder struct {
	file     string
	problems hint.Problems
}

// maxProblems ends a walk.
const maxProblems = 20

// tooMany is panicked to end a walk that has found maxProblems errors.
type tooMany struct{}

// Parse parses and validates a policy. The path is used in messages. The error reports
// all problems, each with file, line and column.
func Parse(path string, data []byte) (p *Policy, err error) {
	p = &Policy{Path: path, SHA256: hash(data)}
	if err := decode(path, data, func(d *decoder, root *yaml.Node) { d.policy(root, p) }); err != nil {
		return nil, err
	}
	return p, nil
}

func decode(path string, data []byte, walk func(*decoder, *yaml.Node)) (err error) {
	d := &decoder{file: path}
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(tooMany); !ok {
				panic(r)
			}
			err = d.problems.Err()
		}
	}()
	root, err := d.document(data)
	if err != nil {
		return err
	}
	walk(d, root)
	return d.problems.Err()
}

// document parses a single document.
func (d *decoder) document(data []byte) (*yaml.Node, error) {
	if !utf8.Valid(data) {
		return nil, &hint.Error{Err: fmt.Errorf("%s: invalid UTF-8", d.file), Hint: "save the file as UTF-8"}
	}
	var doc yaml.Node
	err := yaml.Load(data, &doc)
	if err != nil && strings.Contains(err.Error(), "no documents in stream") || err == nil && len(doc.Content) != 1 {
		return nil, &hint.Error{Err: fmt.Errorf("%s: empty file", d.file), Hint: "start it with version: 1, or remove it"}
	}
	if err != nil {
		var le *yaml.LoadError
		if errors.As(err, &le) && le.Mark.Line > 0 {
			return nil, fmt.Errorf("%s:%d:%d: invalid YAML: %s", d.file, le.Mark.Line, le.Mark.Column, oneLine(le.Message))
		}
		return nil, &hint.Error{Err: fmt.Errorf("%s: invalid YAML: %s", d.file, oneLine(err.Error())), Hint: "start the file with version: 1"}
	}
	return doc.Content[0], nil
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

func (d *decoder) fail(n *yaml.Node, fix, format string, args ...any) {
	err := fmt.Errorf("%s:%d:%d: %s", d.file, n.Line, n.Column, fmt.Sprintf(format, args...))
	if fix != "" {
		err = &hint.Error{Err: err, Hint: fix}
	}
	if d.problems = append(d.problems, err); len(d.problems) == maxProblems {
		panic(tooMany{})
	}
}

// fields walks a mapping that has only the given keys.
func (d *decoder) fields(n *yaml.Node, what string, known map[string]func(*yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, "", "invalid %s: expected a mapping, got %s", what, kind(n))
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		fn := known[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || key.Tag == "!!null" || key.Tag == "!!merge":
			d.fail(key, "", "invalid key in %s: expected text, got %s", what, kind(key))
		case seen[key.Value]:
			d.fail(key, "remove one of them", "duplicate key %s in %s", quoted(key.Value), what)
		case fn == nil:
			names := slices.Sorted(maps.Keys(known))
			fix := "known keys: " + strings.Join(names, ", ")
			if near := nearest.Of(key.Value, names); near != "" {
				fix = fmt.Sprintf("did you mean %q?", near)
			}
			d.fail(key, fix, "unknown key %s in %s", quoted(key.Value), what)
		default:
			fn(value)
		}
		seen[key.Value] = true
	}
}

// list reads a list of texts, each of which check accepts and may rewrite. It is never
// nil: an empty list allows nothing.
func (d *decoder) list(n *yaml.Node, what string, check func(string) (string, error)) []string {
	if n.Kind != yaml.SequenceNode {
		d.fail(n, "write it as [a, b]", "invalid %s: expected a list, got %s", what, kind(n))
		return nil
	}
	out := []string{}
	for _, item := range n.Content {
		s, ok := d.text(item, what+" entry")
		if !ok {
			continue
		}
		s, err := check(s)
		if err != nil {
			d.fail(item, hint.Of(err), "invalid %s entry: %s", what, err)
			continue
		}
		out = append(out, s)
	}
	return out
}

// text reads text that is printable and not empty.
func (d *decoder) text(n *yaml.Node, what string) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		d.fail(n, "", "invalid %s: expected text, got %s", what, kind(n))
	case n.Value == "" || strings.ContainsFunc(n.Value, func(r rune) bool { return !unicode.IsPrint(r) }):
		d.fail(n, "", "invalid %s: empty, or with an invisible character", what)
	default:
		return n.Value, true
	}
	return "", false
}

// oneOf returns a check for list: one of the words.
func oneOf(words ...string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !slices.Contains(words, s) {
			return "", &hint.Error{Err: fmt.Errorf("unknown value %s", quoted(s)), Hint: "known values: " + strings.Join(words, ", ")}
		}
		return s, nil
	}
}

func (d *decoder) boolean(n *yaml.Node, what string) bool {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!bool" {
		d.fail(n, "", "invalid %s: expected true or false, got %s", what, kind(n))
	}
	return strings.EqualFold(n.Value, "true")
}

func (d *decoder) integer(n *yaml.Node, what string, low, high int64) int64 {
	v, err := strconv.ParseInt(n.Value, 10, 64)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil || v < low || v > high {
		d.fail(n, "", "invalid %s: expected a whole number from %d to %d", what, low, high)
		return 0
	}
	return v
}

// quoted returns the beginning of a text in quotes.
func quoted(s string) string {
	const most = 100
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return strconv.Quote(s)
}

// kind names the kind of a value.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.Tag {
	case "!!null":
		return "an empty value"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	case "!!str":
		return "text"
	}
	return "a value with a tag"
}
