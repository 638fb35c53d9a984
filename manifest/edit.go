package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// Edit is a change of a manifest's text.
type Edit struct{ Before, After []byte }

// Changed reports whether the edit changed anything.
func (e Edit) Changed() bool { return !bytes.Equal(e.Before, e.After) }

// SaveAllow adds an entry to a bottle's egress.allow in a manifest, unless it is already
// present. The rest of the text, including comments, does not change. The file is read
// and written with the caller's rights.
func SaveAllow(c caller.Caller, manifest, bottleName, entry string) (Edit, error) {
	parsed, err := egress.ParseListEntry(entry)
	if err != nil {
		return Edit{}, err
	}
	return saveManifest(c, manifest, bottleName, parsed, addToManifest)
}

// SaveDeny removes the entries of a host from a bottle's egress.allow in a manifest, if
// there are any, as SaveAllow adds one.
func SaveDeny(c caller.Caller, manifest, bottleName, entry string) (Edit, error) {
	parsed, err := egress.ParseListEntry(entry)
	if err != nil {
		return Edit{}, err
	}
	return saveManifest(c, manifest, bottleName, parsed, dropFromManifest)
}

type manifestEdit func(file, bottleName string, data []byte, entry egress.ListEntry) ([]byte, error)

func saveManifest(c caller.Caller, path, bottleName string, entry egress.ListEntry, edit manifestEdit) (Edit, error) {
	path, err := c.EvalSymlinks(path)
	if err != nil {
		return Edit{}, fmt.Errorf("update manifest: %w", err)
	}
	data, err := c.ReadRegular(path, maxManifest+1)
	if err != nil {
		return Edit{}, fmt.Errorf("update manifest: %w", err)
	}
	changed, err := edit(path, bottleName, data, entry)
	if err != nil {
		return Edit{}, err
	}
	done := Edit{data, changed}
	if !done.Changed() {
		return done, nil
	}
	err = c.Do(func() error { return atomicfile.Replace(path, changed) })
	if errors.Is(err, fs.ErrPermission) {
		return Edit{}, &hint.Error{
			Err:  fmt.Errorf("update manifest: %w", err),
			Hint: "edit it as its owner, or make the file and its directory yours",
		}
	}
	if err != nil {
		return Edit{}, fmt.Errorf("update manifest: %w", err)
	}
	return done, nil
}

// byHand returns the error for a text that cannot be edited safely.
func byHand(file, what string) error {
	return &hint.Error{Err: fmt.Errorf("cannot edit the notation of %s", file), Hint: what + " by hand"}
}

// addToManifest adds an entry to allow, or removes it from deny.
func addToManifest(file, bottleName string, data []byte, entry egress.ListEntry) ([]byte, error) {
	return editManifest(file, bottleName, data, func(e egress.Entries) (egress.Entries, egress.Change, error) { return e.Allowing(entry) })
}

// dropFromManifest removes an entry from allow, or adds it to deny if another entry
// allows it too.
func dropFromManifest(file, bottleName string, data []byte, entry egress.ListEntry) ([]byte, error) {
	return editManifest(file, bottleName, data, func(e egress.Entries) (egress.Entries, egress.Change, error) { return e.Denying(entry) })
}

// editManifest edits the text at the places that the parser reports, and parses the
// result: it must be the same manifest except for the change.
func editManifest(file, bottleName string, data []byte, change func(egress.Entries) (egress.Entries, egress.Change, error)) ([]byte, error) {
	before, err := Parse(file, data)
	if err != nil {
		return nil, err
	}
	b := before.Bottles[bottleName]
	if b == nil {
		return nil, fmt.Errorf("missing bottle %q in %s", bottleName, file)
	}
	after, c, err := change(egress.Entries{Allow: b.Egress.Allow, Rules: b.Egress.Rules, Deny: b.Egress.Deny})
	if err != nil {
		return nil, err
	}
	edits := []struct {
		list, do  string
		left, set []string // of the list, and what to remove or add
		edit      func(t *manifestText, list string, left []string, entry string) bool
	}{
		{"allow", "remove", b.Egress.Allow, c.Removed.Allow, (*manifestText).remove},
		{"deny", "remove", b.Egress.Deny, c.Removed.Deny, (*manifestText).remove},
		{"allow", "add", nil, c.Added.Allow, (*manifestText).insertEntry},
		{"deny", "add", nil, c.Added.Deny, (*manifestText).insertEntry},
	}
	for _, e := range edits {
		for _, entry := range e.set {
			hint := fmt.Sprintf("%s %s under bottles, %s, egress, %s", e.do, entry, bottleName, e.list)
			t := newManifestText(file, data)
			if t == nil {
				return nil, byHand(file, hint)
			}
			t.bottle = bottleName
			if !e.edit(t, e.list, e.left, entry) {
				return nil, byHand(file, hint)
			}
			if i := slices.Index(e.left, entry); i >= 0 {
				e.left = slices.Delete(slices.Clone(e.left), i, i+1)
			}
			data = t.data
		}
	}
	if !c.Empty() && !sameBut(before, file, bottleName, data, Egress{Allow: after.Allow, Deny: after.Deny}) {
		return nil, byHand(file, fmt.Sprintf("change egress under bottles, %s,", bottleName))
	}
	return data, nil
}

// remove removes an entry of a list, whose entries are left so far.
func (t *manifestText) remove(list string, left []string, entry string) bool {
	return t.drop(list, slices.Index(left, entry))
}

func (t *manifestText) insertEntry(list string, _ []string, entry string) bool {
	return t.add(list, entry)
}

// sameBut reports whether a text is the manifest before with other lists of allowed
// and denied hosts.
func sameBut(before *Manifest, file, bottleName string, data []byte, want Egress) bool {
	after, err := Parse(file, data)
	if err != nil {
		return false
	}
	restored := *after.Bottles[bottleName]
	if !slices.Equal(restored.Egress.Allow, want.Allow) || !slices.Equal(restored.Egress.Deny, want.Deny) {
		return false
	}
	restored.Egress.Allow, restored.Egress.Deny = before.Bottles[bottleName].Egress.Allow, before.Bottles[bottleName].Egress.Deny
	after.Bottles[bottleName] = &restored
	return reflect.DeepEqual(withoutPositions(before), withoutPositions(after))
}

// withoutPositions returns a copy of a manifest without the positions of its variables.
func withoutPositions(m *Manifest) *Manifest {
	out := &Manifest{Path: m.Path, Agents: m.Agents, Bottles: map[string]*Bottle{}}
	for name, b := range m.Bottles {
		c := *b
		c.Env = slices.Clone(b.Env)
		for i := range c.Env {
			c.Env[i].At = position{}
		}
		out.Bottles[name] = &c
	}
	return out
}

// manifestText is the text of a manifest during an edit.
type manifestText struct {
	data   []byte
	json   bool
	root   *yaml.Node
	bottle string // the bottle that is edited
}

func newManifestText(file string, data []byte) *manifestText {
	d := &decoder{file: file}
	root, ok := d.document(data)
	if !ok {
		return nil
	}
	return &manifestText{data: data, json: json.Valid(data), root: root}
}

// offset returns the offset of a node's first byte.
func (t *manifestText) offset(n *yaml.Node) int {
	at := 0
	for range n.Line - 1 {
		at += bytes.IndexByte(t.data[at:], '\n') + 1
	}
	for range n.Column - 1 {
		_, size := utf8.DecodeRune(t.data[at:])
		at += size
	}
	return at
}

func (t *manifestText) insert(at int, text string) {
	t.data = slices.Concat(t.data[:at], []byte(text), t.data[at:])
}

// child returns the nodes of a key and its value, or nil if n is not a mapping with that
// key, as with an alias.
func child(n *yaml.Node, key string) (k, v *yaml.Node) {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil, nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i], n.Content[i+1]
		}
	}
	return nil, nil
}

func (t *manifestText) find(list string) (bottle, egressNode, key, items *yaml.Node) {
	_, bottles := child(t.root, "bottles")
	_, bottle = child(bottles, t.bottle)
	_, egressNode = child(bottle, "egress")
	key, items = child(egressNode, list)
	return bottle, egressNode, key, items
}

var plainEntry = lazyregexp.New(`^[a-z][a-z0-9-]*(\.[a-z0-9-]+)+$`)

func (t *manifestText) scalar(entry string) string {
	if !t.json && plainEntry().MatchString(entry) {
		return entry
	}
	return `"` + entry + `"` // no character of an entry needs escaping
}

// add inserts an entry. It returns false if the notation is not supported.
func (t *manifestText) add(list, entry string) bool {
	bottle, egressNode, _, items := t.find(list)
	scalar := t.scalar(entry)
	quoted := func(key string) string {
		if t.json {
			return `"` + key + `"`
		}
		return key
	}
	switch {
	case items != nil:
		return items.Kind == yaml.SequenceNode && t.append(items, scalar)
	case egressNode != nil:
		return t.insertKey(egressNode, quoted(list)+": ["+scalar+"]", list+":", "  - "+scalar)
	case bottle != nil:
		return t.insertKey(bottle, quoted("egress")+": {"+quoted(list)+": ["+scalar+"]}", "egress:", "  "+list+":", "    - "+scalar)
	}
	return false
}

// append adds a scalar after the last item of a list.
func (t *manifestText) append(list *yaml.Node, scalar string) bool {
	at := t.offset(list)
	if t.data[at] == '[' {
		if len(list.Content) == 0 {
			t.insert(at+1, scalar)
			return true
		}
		if last := lastScalar(list); last == nil {
			t.insert(t.offset(list.Content[0]), scalar+", ")
			return true
		} else if last != list.Content[len(list.Content)-1] {
			t.insert(t.end(last), ", "+scalar)
			return true
		}
		last := list.Content[len(list.Content)-1]
		end := t.end(last)
		between := ", "
		// A list of a line for each item stays one.
		if n := len(list.Content); n > 1 && last.Line > list.Content[n-2].Line || last.Line > list.Line {
			between = ",\n" + strings.Repeat(" ", last.Column-1)
		}
		t.insert(end, between+scalar)
		return true
	}
	last := lastScalar(list)
	if last == nil {
		// An entry with rules may have several lines.
		first := list.Content[0]
		start, _ := t.line(t.offset(first))
		prefix := string(t.data[start:t.offset(first)])
		if strings.TrimSpace(prefix) != "-" {
			return false
		}
		t.insert(start, prefix+scalar+"\n")
		return true
	}
	start, end := t.line(t.offset(last))
	prefix := string(t.data[start:t.offset(last)])
	if strings.TrimSpace(prefix) != "-" {
		return false
	}
	t.insertLine(end, prefix+scalar)
	return true
}

// lastScalar returns the last item of a list that is an entry without rules; nil: there is
// none.
func lastScalar(list *yaml.Node) *yaml.Node {
	for _, item := range slices.Backward(list.Content) {
		if item.Kind == yaml.ScalarNode {
			return item
		}
	}
	return nil
}

// scalarIndex returns the index in a list of the item that is the entry without rules of an
// index; -1: there is none.
func scalarIndex(list *yaml.Node, index int) int {
	for i, item := range list.Content {
		isRule := item.Kind == yaml.MappingNode || item.Kind == yaml.AliasNode && item.Alias.Kind == yaml.MappingNode
		if isRule {
			continue
		}
		if index == 0 {
			return i
		}
		index--
	}
	return -1
}

// insertKey inserts a key at the start of a mapping: flow in flow style, or lines in block
// style, indented like the other keys.
func (t *manifestText) insertKey(m *yaml.Node, flow string, lines ...string) bool {
	if m.Kind != yaml.MappingNode {
		return false
	}
	at := t.offset(m)
	if t.data[at] == '{' {
		if len(m.Content) > 0 {
			flow += ", "
		}
		t.insert(at+1, flow)
		return true
	}
	start, _ := t.line(at)
	indent := string(t.data[start:at])
	if strings.TrimSpace(indent) != "" {
		return false
	}
	t.insert(start, indent+strings.Join(lines, "\n"+indent)+"\n")
	return true
}

// drop removes the item with an index from the list.
func (t *manifestText) drop(list string, index int) bool {
	_, _, key, items := t.find(list)
	if items == nil || index < 0 || items.Kind != yaml.SequenceNode {
		return false
	}
	if index = scalarIndex(items, index); index < 0 {
		return false
	}
	item := items.Content[index]
	from := t.offset(item)
	if t.data[t.offset(items)] == '[' {
		to := t.end(item)
		if index+1 < len(items.Content) {
			to = t.offset(items.Content[index+1])
		} else if index > 0 {
			if items.Content[index-1].Kind != yaml.ScalarNode {
				return false
			}
			from = t.end(items.Content[index-1])
		}
		t.data = slices.Delete(slices.Clone(t.data), from, to)
		return true
	}
	start, end := t.line(from)
	if strings.TrimSpace(string(t.data[start:from])) != "-" {
		return false
	}
	keyEnd := t.offset(key) + len(list+":")
	t.data = slices.Delete(slices.Clone(t.data), start, min(end+1, len(t.data)))
	if len(items.Content) == 1 {
		if !bytes.HasPrefix(t.data[t.offset(key):], []byte(list+":")) {
			return false
		}
		t.insert(keyEnd, " []")
	}
	return true
}

// line returns the bounds of the line that contains an offset, without the line break.
func (t *manifestText) line(at int) (start, end int) {
	start = bytes.LastIndexByte(t.data[:at], '\n') + 1
	if n := bytes.IndexByte(t.data[at:], '\n'); n >= 0 {
		return start, at + n
	}
	return start, len(t.data)
}

func (t *manifestText) insertLine(end int, text string) {
	if end == len(t.data) {
		t.insert(end, "\n"+text)
		return
	}
	t.insert(end+1, text+"\n")
}

// end returns the offset of the end of a scalar in a flow list.
func (t *manifestText) end(n *yaml.Node) int {
	at := t.offset(n)
	if q := t.data[at]; q == '"' || q == '\'' {
		return at + 2 + bytes.IndexByte(t.data[at+1:], q)
	}
	return at + len(bytes.TrimRight(t.data[at:at+bytes.IndexAny(t.data[at:], ",]\n#")], " \t\r"))
}
