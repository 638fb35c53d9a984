package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bot-bottle/bottle/internal/hint"
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
	problems hint.Problems
	visited  int
	bytes    int // of what was visited
}

// Bounds of a walk. Aliases are followed, so that a small file can stand for a
// huge tree, or for one without an end.
const (
	maxNodes    = 20_000
	maxText     = 8 * maxManifest // a walk may look at a value more than once
	maxProblems = 20
	maxShown    = 400 // bytes of one thing in a message
)

// tooLarge ends a walk, at a node.
type tooLarge struct{ at position }

// enough ends a walk that has found maxProblems mistakes.
type enough struct{}

func (d *decoder) at(n *yaml.Node) position { return position{d.file, n.Line, n.Column} }

func (d *decoder) fail(n *yaml.Node, format string, args ...any) {
	d.failAt(d.at(n), format, args...)
}

// failAt notes a mistake. It panics with enough after the last one that is told,
// which ParseManifest recovers.
func (d *decoder) failAt(at position, format string, args ...any) {
	for i, arg := range args {
		switch arg := arg.(type) {
		case string:
			args[i] = cut(arg, maxShown)
		case error:
			args[i] = cut(arg.Error(), maxShown)
		}
	}
	err := fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...))
	// What aliases repeat is told once.
	if slices.ContainsFunc(d.problems, func(e error) bool { return e.Error() == err.Error() }) {
		return
	}
	if d.problems = append(d.problems, err); len(d.problems) == maxProblems {
		panic(enough{})
	}
}

// cut shortens a text to n bytes and a mark, at a character's border.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// follow resolves an alias and counts. It panics with tooLarge, which
// ParseManifest recovers, as a walk must end at once then.
func (d *decoder) follow(n *yaml.Node) *yaml.Node {
	target := n
	if n.Kind == yaml.AliasNode {
		target = n.Alias
	}
	d.visited++
	d.bytes += len(target.Value)
	if d.visited > maxNodes || d.bytes > maxText {
		panic(tooLarge{d.at(n)})
	}
	return target
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
			d.fail(key, "unknown key %s in %s: did you mean %q?", shown(key.Value), what, near)
		} else {
			d.fail(key, "unknown key %s in %s: known are %s", shown(key.Value), what, strings.Join(names, ", "))
		}
	})
}

// shown quotes a key for a message, without a value that was written into it.
func shown(key string) string {
	if name, _, both := strings.Cut(key, "="); both {
		return quoted(name + "=…")
	}
	return quoted(key)
}

// quoted is the beginning of a text, in quotes.
func quoted(s string) string { return strconv.Quote(cut(s, maxShown/4)) }

// entries walks a mapping whose keys are the user's own.
func (d *decoder) entries(n *yaml.Node, what string, fn func(key, value *yaml.Node)) {
	n = d.follow(n)
	if n.Kind != yaml.MappingNode {
		message := "%s must be a mapping of keys to values, not %s"
		if kind(n) == kindEmpty {
			message += ": write {} for one without any"
		}
		d.fail(n, message, what, kind(n))
		return
	}
	seen := map[string]position{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := d.follow(n.Content[i]), n.Content[i+1]
		if key.Tag == "!!merge" {
			d.fail(n.Content[i], "merging with << is not supported: write the keys out")
			continue
		}
		if key.Kind != yaml.ScalarNode || key.Tag == "!!null" {
			d.fail(n.Content[i], "a key of %s must be text, not %s", what, kind(key))
			continue
		}
		if first, ok := seen[key.Value]; ok {
			d.fail(n.Content[i], "%s stands twice in %s, first in line %d: keep one", shown(key.Value), what, first.line)
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

// scalarTags are those of values that are text without being written as such.
var scalarTags = []string{"!!int", "!!float", "!!bool"}

// text reads a string. Numbers and truth values are taken as they are written
// where scalars is set.
func (d *decoder) text(n *yaml.Node, what string, scalars bool) (string, bool) {
	n = d.follow(n)
	ok := n.Kind == yaml.ScalarNode && (n.Tag == "!!str" || n.Tag == "!!timestamp" ||
		scalars && slices.Contains(scalarTags, n.Tag))
	if !ok {
		message := "%s must be text, not %s"
		if n.Kind == yaml.ScalarNode && slices.Contains(scalarTags, n.Tag) {
			message += ": put it in quotes"
		}
		d.fail(n, message, what, kind(n))
		return "", false
	}
	if strings.ContainsRune(n.Value, 0) {
		d.fail(n, "%s holds a NUL byte, which neither a variable nor an argument can: take it out", what)
		return "", false
	}
	return n.Value, true
}

// printable tells whether text shows as what it is. A manifest may be somebody
// else's, and is not to draw over the plan that the user agrees to.
func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// name reads text that may not be empty and is printable.
func (d *decoder) name(n *yaml.Node, what string) (string, bool) {
	s, ok := d.text(n, what, false)
	if !ok {
		return "", false
	}
	switch {
	case s == "":
		d.fail(n, "%s must not be empty", what)
	case !printable(s):
		d.fail(n, "%s must be on one line, without characters that cannot be seen", what)
	default:
		return s, true
	}
	return "", false
}

// setName returns a function for mapping that reads text into out.
func (d *decoder) setName(out *string, what string) func(*yaml.Node) {
	return func(n *yaml.Node) { *out, _ = d.name(n, what) }
}

// integer reads a whole number between low and high.
func (d *decoder) integer(n *yaml.Node, what string, low, high int64) int64 {
	n = d.follow(n)
	v, err := strconv.ParseInt(n.Value, 0, 64)
	isNumber := n.Kind == yaml.ScalarNode && n.Tag == "!!int" && err == nil
	if isNumber && v >= low && v <= high {
		return v
	}
	got := kind(n)
	if isNumber {
		got = strconv.FormatInt(v, 10)
	}
	if low == high {
		d.fail(n, "%s must be the number %d, not %s", what, low, got)
	} else {
		d.fail(n, "%s must be a whole number from %d to %d, not %s", what, low, high, got)
	}
	return 0
}

const kindEmpty = "empty"

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
		return kindEmpty
	case "!!bool":
		return "true or false"
	case "!!int":
		return "a number"
	case "!!float":
		return "a number with a fraction or an exponent"
	case "!!str":
		return "text"
	}
	return "a value with the tag " + quoted(n.Tag)
}
