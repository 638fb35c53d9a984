package bottle

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// position is where in a manifest something stands.
type position struct {
	file      string
	line, col int // from 1
}

func (p position) String() string { return fmt.Sprintf("%s:%d:%d", p.file, p.line, p.col) }

// decoder walks a YAML document strictly and collects every mistake.
type decoder struct {
	file     string
	problems Problems
	visited  int
}

// Bounds of a walk. Aliases are followed, so that a small file can stand for a
// huge tree, or for one without an end.
const (
	maxNodes    = 20_000
	maxProblems = 20
)

// errTooLarge ends a walk.
var errTooLarge = fmt.Errorf("more than %d values, aliases followed", maxNodes)

func (d *decoder) at(n *yaml.Node) position { return position{d.file, n.Line, n.Column} }

func (d *decoder) fail(n *yaml.Node, format string, args ...any) {
	d.failAt(d.at(n), format, args...)
}

func (d *decoder) failAt(at position, format string, args ...any) {
	if len(d.problems) < maxProblems {
		d.problems = append(d.problems, fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...)))
	}
}

// document parses one YAML document; JSON is YAML.
func (d *decoder) document(data []byte) (*yaml.Node, bool) {
	var doc yaml.Node
	err := yaml.Load(data, &doc)
	if err == nil && len(doc.Content) == 1 {
		return doc.Content[0], true
	}
	at := position{d.file, 1, 1}
	var le *yaml.LoadError
	switch {
	case err == nil:
		d.failAt(at, "the manifest is empty")
	case errors.As(err, &le):
		message := le.Message
		if le.Mark.Line > 0 {
			at.line, at.col = le.Mark.Line, le.Mark.Column
		} else if i := strings.LastIndex(message, "yaml: "); i >= 0 {
			message = message[i+len("yaml: "):]
		}
		switch message {
		case "no documents in stream":
			message = "the manifest is empty"
		case "expected single document, found multiple":
			message = "more than one document in a manifest"
		}
		d.failAt(at, "%s", message)
	default:
		d.failAt(at, "%s", err)
	}
	return nil, false
}

// follow resolves an alias and counts. It panics with errTooLarge, which
// ParseManifest recovers, as a walk must end at once then.
func (d *decoder) follow(n *yaml.Node) *yaml.Node {
	if d.visited++; d.visited > maxNodes {
		panic(errTooLarge)
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// mapping walks a mapping's keys; each has a function for its value. A key of
// none is a mistake.
func (d *decoder) mapping(n *yaml.Node, what string, fields map[string]func(*yaml.Node)) {
	d.entries(n, what, func(key, value *yaml.Node) {
		if fn, ok := fields[key.Value]; ok {
			fn(value)
			return
		}
		names := sortedKeys(fields)
		if near := nearest(key.Value, names); near != "" {
			d.fail(key, "unknown key %q in %s: did you mean %q?", key.Value, what, near)
		} else {
			d.fail(key, "unknown key %q in %s: known are %s", key.Value, what, strings.Join(names, ", "))
		}
	})
}

// entries walks a mapping whose keys are the user's own.
func (d *decoder) entries(n *yaml.Node, what string, fn func(key, value *yaml.Node)) {
	n = d.follow(n)
	if n.Kind != yaml.MappingNode {
		d.fail(n, "%s must be a mapping, not %s", what, kind(n))
		return
	}
	seen := map[string]position{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := d.follow(n.Content[i]), n.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!null" || key.Tag == "!!merge" {
			d.fail(n.Content[i], "a key of %s must be text, not %s", what, kind(key))
			continue
		}
		if first, ok := seen[key.Value]; ok {
			d.fail(n.Content[i], "%q stands twice in %s: first in line %d", key.Value, what, first.line)
			continue
		}
		seen[key.Value] = d.at(n.Content[i])
		fn(key, value)
	}
}

// items walks a sequence.
func (d *decoder) items(n *yaml.Node, what string, fn func(*yaml.Node)) {
	n = d.follow(n)
	if n.Kind != yaml.SequenceNode {
		d.fail(n, "%s must be a list, not %s", what, kind(n))
		return
	}
	for _, item := range n.Content {
		fn(item)
	}
}

// text reads a string. Numbers and truth values are taken as they are written
// where scalars is set.
func (d *decoder) text(n *yaml.Node, what string, scalars bool) (string, bool) {
	n = d.follow(n)
	ok := n.Kind == yaml.ScalarNode && (n.Tag == "!!str" || n.Tag == "!!timestamp" ||
		scalars && slices.Contains([]string{"!!int", "!!float", "!!bool"}, n.Tag))
	if !ok {
		d.fail(n, "%s must be text, not %s", what, kind(n))
		return "", false
	}
	if strings.ContainsRune(n.Value, 0) {
		d.fail(n, "%s holds a NUL byte", what)
		return "", false
	}
	return n.Value, true
}

// name reads text that may not be empty and stands on one line.
func (d *decoder) name(n *yaml.Node, what string) (string, bool) {
	s, ok := d.text(n, what, false)
	if !ok {
		return "", false
	}
	if s == "" || strings.ContainsAny(s, "\r\n") {
		d.fail(n, "%s must not be empty and must be on one line", what)
		return "", false
	}
	return s, true
}

func (d *decoder) names(n *yaml.Node, what string) []string {
	var out []string
	d.items(n, what, func(item *yaml.Node) {
		if s, ok := d.name(item, "an entry of "+what); ok {
			out = append(out, s)
		}
	})
	return out
}

// setName returns a function for mapping that reads text into out.
func (d *decoder) setName(out *string, what string) func(*yaml.Node) {
	return func(n *yaml.Node) { *out, _ = d.name(n, what) }
}

// integer reads a whole number between low and high.
func (d *decoder) integer(n *yaml.Node, what string, low, high int64) int64 {
	n = d.follow(n)
	v, err := strconv.ParseInt(n.Value, 0, 64)
	if n.Kind != yaml.ScalarNode || n.Tag != "!!int" || err != nil || v < low || v > high {
		d.fail(n, "%s must be a whole number from %d to %d, not %s", what, low, high, kind(n))
		return 0
	}
	return v
}

// kind names a value for a message. No value is repeated: it may be a secret
// that stands in the wrong place.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.Tag {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "the number " + n.Value
	case "!!merge":
		return "a merge (<<), which is not supported"
	case "!!str":
		return "text"
	}
	return "a value of type " + n.Tag
}
