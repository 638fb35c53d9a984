// Package manifest reads, checks, describes and edits bottle's configuration file, which
// lists bottles (environments) and agents (commands that run in them). It knows neither
// containers nor the host.
package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/nearest"
	"go.yaml.in/yaml/v4"
)

// position is a place in a manifest.
type position struct {
	file      string
	line, col int // from 1
}

func (p position) String() string { return fmt.Sprintf("%s:%d:%d", p.file, p.line, p.col) }

// decoder walks a YAML document strictly and collects all errors.
type decoder struct {
	file     string
	problems hint.Problems
	visited  int
	bytes    int // of the visited values
}

// Bounds of a walk. Aliases are followed, so a small file can expand to a huge or
// infinite tree.
const (
	maxNodes    = 20_000
	maxText     = 8 * maxManifest // a walk may visit a value more than once
	maxProblems = 20
	maxShown    = 400 // bytes of one value in a message
)

// tooLarge is panicked to end a walk that exceeds its bounds.
type tooLarge struct{ at position }

// tooManyProblems is panicked to end a walk that has found maxProblems errors.
type tooManyProblems struct{}

func (d *decoder) at(n *yaml.Node) position { return position{d.file, n.Line, n.Column} }

func (d *decoder) fail(n *yaml.Node, fix, format string, args ...any) {
	d.failAt(d.at(n), fix, format, args...)
}

// failAt records an error with a hint, which may be empty. After maxProblems errors it
// panics with tooManyProblems, which Parse recovers.
func (d *decoder) failAt(at position, fix, format string, args ...any) {
	for i, arg := range args {
		switch arg := arg.(type) {
		case string:
			args[i] = cut(arg, maxShown)
		case error:
			args[i] = cut(arg.Error(), maxShown)
		}
	}
	err := fmt.Errorf("%s: %s", at, fmt.Sprintf(format, args...))
	if fix != "" {
		err = &hint.Error{Err: err, Hint: cut(fix, maxShown)}
	}
	// An error that aliases repeat is reported once.
	if slices.ContainsFunc(d.problems, func(e error) bool { return e.Error() == err.Error() }) {
		return
	}
	if d.problems = append(d.problems, err); len(d.problems) == maxProblems {
		panic(tooManyProblems{})
	}
}

// cut shortens a text to at most n bytes and an ellipsis, between characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// follow resolves an alias and counts the visited values. It panics with tooLarge, which
// Parse recovers.
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

// mapping walks a mapping and calls the function of each key with its value. A key
// without a function is an error.
func (d *decoder) mapping(n *yaml.Node, what string, fields map[string]func(*yaml.Node)) {
	d.entries(n, what, func(key, value *yaml.Node) {
		if fn, ok := fields[key.Value]; ok {
			fn(value)
			return
		}
		names := sortedKeys(fields)
		fix := "known keys: " + strings.Join(names, ", ")
		if near := nearest.Of(key.Value, names); near != "" {
			fix = fmt.Sprintf("did you mean %q?", near)
		}
		d.fail(key, fix, "unknown key %s in %s", shown(key.Value), what)
	})
}

// shown quotes a key for a message, without a value that follows "=".
func shown(key string) string {
	if name, _, found := strings.Cut(key, "="); found {
		return quoted(name + "=…")
	}
	return quoted(key)
}

// quoted returns the beginning of a text in quotes.
func quoted(s string) string { return strconv.Quote(cut(s, maxShown/4)) }

// entries walks a mapping with arbitrary keys.
func (d *decoder) entries(n *yaml.Node, what string, fn func(key, value *yaml.Node)) {
	n = d.follow(n)
	if n.Kind != yaml.MappingNode {
		fix := ""
		if kind(n) == kindEmpty {
			fix = "write {} for an empty mapping"
		}
		d.fail(n, fix, "invalid %s: expected a mapping, got %s", strings.TrimPrefix(what, "the "), kind(n))
		return
	}
	seen := map[string]position{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := d.follow(n.Content[i]), n.Content[i+1]
		if key.Tag == "!!merge" {
			d.fail(n.Content[i], "write out the merged keys", "unsupported merge key <<")
			continue
		}
		if key.Kind != yaml.ScalarNode || key.Tag == "!!null" {
			d.fail(n.Content[i], "", "invalid key in %s: expected text, got %s", what, kind(key))
			continue
		}
		if first, ok := seen[key.Value]; ok {
			d.fail(n.Content[i], "remove one of them", "duplicate key %s in %s: already defined in line %d", shown(key.Value), what, first.line)
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
		d.fail(n, "", "invalid %s: expected a list, got %s", what, kind(n))
		return
	}
	for _, item := range n.Content {
		fn(item)
	}
}

// scalarTags are the tags of plain values that are not strings.
var scalarTags = []string{"!!int", "!!float", "!!bool"}

// text reads a string. With scalars, numbers and booleans are read as they are written.
func (d *decoder) text(n *yaml.Node, what string, scalars bool) (string, bool) {
	n = d.follow(n)
	ok := n.Kind == yaml.ScalarNode && (n.Tag == "!!str" || n.Tag == "!!timestamp" ||
		scalars && slices.Contains(scalarTags, n.Tag))
	if !ok {
		fix := ""
		if n.Kind == yaml.ScalarNode && slices.Contains(scalarTags, n.Tag) {
			fix = "put it in quotes"
		}
		d.fail(n, fix, "invalid %s: expected text, got %s", what, kind(n))
		return "", false
	}
	if strings.ContainsRune(n.Value, 0) {
		d.fail(n, "remove it: variables and arguments cannot contain one", "invalid %s: contains a NUL byte", what)
		return "", false
	}
	return n.Value, true
}

// printable reports whether all characters of a text are visible. A manifest may come
// from somebody else and must not overwrite parts of the plan that the user confirms.
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
		d.fail(n, "", "invalid %s: empty", what)
	case !printable(s):
		d.fail(n, "", "invalid %s: contains a line break or an invisible character", what)
	default:
		return s, true
	}
	return "", false
}

// setName returns a function for mapping that reads a name into out.
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
		d.fail(n, "", "invalid %s: expected the number %d, got %s", what, low, got)
	} else {
		d.fail(n, "", "invalid %s: expected a whole number from %d to %d, got %s", what, low, high, got)
	}
	return 0
}

const kindEmpty = "an empty value"

// kind names the kind of a value for a message, but not the value: it may be a secret in
// the wrong place.
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
