package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/santhosh-tekuri/jsonschema/v6"
	kinds "github.com/santhosh-tekuri/jsonschema/v6/kind"
	"go.yaml.in/yaml/v4"
)

// notInSchema lists the errors that a JSON Schema cannot detect, by the message of the
// parser, with the reason. The schema must detect every other error of testdata/bad in the
// same place.
var notInSchema = []struct{ file, message, reason string }{
	{"*", `: invalid (YAML|JSON): `, "the text is not a document, so there is nothing to validate"},
	{"*", `: empty manifest`, "the text is not a document"},
	{"*", `: (unexpected (tab|character|control character|second document)|unknown anchor|invalid UTF-8|manifest is larger)`, "the text is not a valid document"},
	{"*", `: duplicate key `, "a validator sees only the last of two equal keys"},
	{"*", `: unknown kind "`, "the kinds are files of package agents"},
	{"*", `: unexpected command: .* cannot be made unattended in it`, "a schema does not know the programs of kinds"},
	{"*", `: unknown bottle "`, "a schema cannot relate a value to the keys of another mapping"},
	{"*", `: duplicate ssh Host `, "a schema compares only complete list items"},
	{"*", `: unsupported merge key <<`, "a YAML library resolves the merge before validation"},
	{"*", `: invalid key in bottles: expected text, got `, "JSON has no other keys"},
	{"*", `: too (many values|much text): more than `, "a schema cannot count across the document"},
	{"agent_slug_long.yaml", ` is too long: [0-9]+ characters in a bottle name`, "the length is checked after characters are replaced"},
	{"alias_self_deep.yaml", ``, "an infinite document"},
	{"alias_self.yaml", ``, "an infinite document"},
	{"allow.yaml", `: bits set beyond its length`, "arithmetic on addresses"},
	{"allow.yaml", `: would allow every private network`, "arithmetic on addresses"},
	{"allow_rules_parts.yaml", `: conflicting allow entry "api.test:8443"`, "a schema does not compare the hosts of list items"},
	{"allow_rules.yaml", `: duplicate paths entry `, "a schema compares only complete lists"},
	{"allow_rules_parts.yaml", `: (upgrade without the method GET|push with git: read|methods or upgrade with git)`, "conditions on pairs of keys, which would make the schema hard to read"},
	{"deny.yaml", `: invalid port range `, "arithmetic on ports"},
	{"json_types.json", `1:13: invalid version: expected the number 1, got a number with a fraction`, "to a schema 1.0 is the integer 1"},
	{"json_types.json", `: invalid pids: expected a whole number .* got a number with a fraction or an exponent`, "to a schema 5e2 is an integer"},
	{"laughs_lists.yaml", ``, "a schema would walk all expanded aliases"},
	{"limits.yaml", `: invalid pids: expected a whole number .* got a number with a fraction or an exponent`, "to a schema 1e3 is an integer"},
	{"limits.yaml", `: invalid memory "[0-9]+[A-Za-z]+": expected a size`, "the bounds depend on the unit in the text"},
	{"proxy.yaml", `: invalid memory "1MiB": expected a size`, "the bounds depend on the unit in the text"},
	{"tag.yaml", ``, "JSON has no tags"},
	{"tag_int.yaml", ``, "JSON has no tags"},
}

func reasonNotInSchema(file, message string) string {
	for _, e := range notInSchema {
		if (e.file == "*" || e.file == file) && regexp.MustCompile(e.message).MatchString(message) {
			return e.reason
		}
	}
	return ""
}

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("bottle.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("bottle.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// document is a manifest as seen by a validator, with the location of each position of the
// text.
type document struct {
	value    any
	pointers map[string]string // "line:col" to JSON pointer; for a key, that of its mapping
	keys     map[string]string // "line:col" to the key at that position
}

// readDocument returns false if there is no document to validate, or JSON cannot represent
// it.
func readDocument(file string, data []byte) (*document, bool) {
	d := &decoder{file: file}
	root, ok := d.document(data)
	if !ok {
		return nil, false
	}
	doc := &document{pointers: map[string]string{}, keys: map[string]string{}}
	count := 0
	doc.value, ok = doc.read(root, "", &count)
	return doc, ok
}

func (doc *document) note(n *yaml.Node, pointer string) {
	at := strconv.Itoa(n.Line) + ":" + strconv.Itoa(n.Column)
	if _, ok := doc.pointers[at]; !ok {
		doc.pointers[at] = pointer
	}
}

func (doc *document) read(n *yaml.Node, pointer string, count *int) (any, bool) {
	doc.note(n, pointer)
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if *count++; *count > maxNodes {
		return nil, false
	}
	switch n.Kind {
	case yaml.MappingNode:
		out := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i]
			doc.note(key, pointer)
			if key.Kind == yaml.AliasNode {
				key = key.Alias
			}
			if key.Kind != yaml.ScalarNode {
				return nil, false
			}
			doc.keys[strconv.Itoa(n.Content[i].Line)+":"+strconv.Itoa(n.Content[i].Column)] = key.Value
			value, ok := doc.read(n.Content[i+1], pointer+"/"+key.Value, count)
			if !ok {
				return nil, false
			}
			out[key.Value] = value
		}
		return out, true
	case yaml.SequenceNode:
		out := []any{}
		for i, item := range n.Content {
			value, ok := doc.read(item, pointer+"/"+strconv.Itoa(i), count)
			if !ok {
				return nil, false
			}
			out = append(out, value)
		}
		return out, true
	}
	return scalarJSON(n)
}

func scalarJSON(n *yaml.Node) (any, bool) {
	switch n.Tag {
	case "!!str", "!!timestamp": // YAML 1.2 has no timestamps
		return n.Value, true
	case "!!null":
		return nil, true
	case "!!bool":
		return strings.EqualFold(n.Value, "true"), true
	case "!!int":
		v, err := strconv.ParseInt(n.Value, 0, 64)
		if err != nil {
			return json.Number(n.Value), json.Valid([]byte(n.Value))
		}
		return json.Number(strconv.FormatInt(v, 10)), true
	case "!!float":
		v, err := strconv.ParseFloat(n.Value, 64)
		if text, jerr := json.Marshal(v); err == nil && jerr == nil {
			return json.Number(text), true
		}
		return n.Value, true // JSON has no infinity
	}
	return nil, false
}

// complaints returns the locations of the errors of a validator.
func complaints(err error) []string {
	var ve *jsonschema.ValidationError
	if !errors.As(err, &ve) {
		return nil
	}
	var out []string
	var walk func(*jsonschema.ValidationError)
	walk = func(e *jsonschema.ValidationError) {
		// The validator overwrites the location of this kind of error, but has the key.
		if k, ok := e.ErrorKind.(*kinds.PropertyNames); ok {
			out = append(out, "key "+k.Property)
			return
		}
		if len(e.Causes) == 0 {
			pointer := ""
			for _, part := range e.InstanceLocation {
				pointer += "/" + part
			}
			out = append(out, pointer)
		}
		for _, c := range e.Causes {
			walk(c)
		}
	}
	walk(ve)
	return out
}

// TestSchemaEqualsParser validates every file of testdata with schema and parser. Both must
// agree, and the schema must report each error of the parser in the same place, except for
// those in notInSchema.
func TestSchemaEqualsParser(t *testing.T) {
	schema := compileSchema(t)
	files, err := filepath.Glob("testdata/*/*.*")
	if err != nil {
		t.Fatal(err)
	}
	excepted := map[string]bool{}
	checked := 0
	for _, path := range files {
		name := filepath.Base(path)
		if name == "messages.txt" {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, perr := Parse(name, data)
		doc, readable := readDocument(name, data)
		var places []string
		if readable {
			serr := schema.Validate(doc.value)
			if places = complaints(serr); (serr != nil) != (len(places) > 0) {
				t.Fatalf("%s: no places in %v", name, serr)
			}
			checked++
			if perr == nil && serr != nil {
				t.Errorf("%s: valid for the parser, but not for the schema: %v", path, serr)
			}
		}
		for _, mistake := range hint.Split(perr) {
			if reason := reasonNotInSchema(name, mistake.Error()); reason != "" {
				excepted[reason] = true
				continue
			}
			if !readable {
				t.Errorf("no document for the schema, and no exception listed: %v", mistake)
				continue
			}
			at := strings.Join(strings.SplitN(mistake.Error(), ":", 4)[1:3], ":")
			pointer, ok := doc.pointers[at]
			key, isKey := doc.keys[at]
			found := isKey && slices.Contains(places, "key "+key) || slices.ContainsFunc(places, func(p string) bool {
				return p == pointer || strings.HasPrefix(p, pointer+"/")
			})
			if !ok || !found {
				t.Errorf("the schema reports nothing at %s: %v; it reports %q", pointer, mistake, places)
			}
		}
	}
	for _, e := range notInSchema {
		if !excepted[e.reason] {
			t.Errorf("unused exception %q", e.reason)
		}
	}
	if checked < 40 {
		t.Errorf("only %d files were checked by both", checked)
	}
}

// TestSchemaHasThePresets compares the names of presets, which editors complete.
func TestSchemaHasThePresets(t *testing.T) {
	var schema struct {
		Defs struct {
			Preset struct{ Enum []string }
		} `json:"$defs"`
	}
	if err := json.Unmarshal(Schema, &schema); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, p := range egress.Presets() {
		want = append(want, p.Name)
	}
	if !slices.Equal(schema.Defs.Preset.Enum, want) {
		t.Errorf("the schema has %q, want %q", schema.Defs.Preset.Enum, want)
	}
}

// TestSchemaHasTheParsersKeys compares the keys of the schema with those in the parser's
// hints.
func TestSchemaHasTheParsersKeys(t *testing.T) {
	var schema struct {
		Properties map[string]any
		Defs       map[string]struct {
			Properties map[string]any
			Then       struct{ Properties map[string]any }
		} `json:"$defs"`
	}
	if err := json.Unmarshal(Schema, &schema); err != nil {
		t.Fatal(err)
	}
	known := regexp.MustCompile(`^known keys: ([\w, ]+)`)
	for name, c := range map[string]struct {
		manifest string
		keys     map[string]any
	}{
		"root":     {`{xxxxxxxxxxxx: 1}`, schema.Properties},
		"bottle":   {`{bottles: {a: {xxxxxxxxxxxx: 1}}}`, schema.Defs["bottle"].Properties},
		"build":    {`{bottles: {a: {image: i, build: {xxxxxxxxxxxxxx: 1}}}}`, schema.Defs["build"].Properties},
		"variable": {`{bottles: {a: {env: {A: {xxxxxxxxxxxx: 1}}}}}`, schema.Defs["variable"].Then.Properties},
		"egress":   {`{bottles: {a: {egress: {xxxxxxxxxxxxxxxx: 1}}}}`, schema.Defs["egress"].Properties},
		"hostRule": {`{bottles: {a: {egress: {allow: [{xxxxxxxxxxxxxxxx: 1}]}}}}`, schema.Defs["hostRule"].Properties},
		"proxy":    {`{bottles: {a: {proxy: {xxxxxxxxxxxxxxxx: 1}}}}`, schema.Defs["proxy"].Properties},
		"sshHost":  {`{bottles: {a: {ssh: [{xxxxxxxxxxxxxxxx: 1}]}}}`, schema.Defs["sshHost"].Properties},
		"git":      {`{bottles: {a: {git: {xxxxxxxxxxxxxxxx: 1}}}}`, schema.Defs["git"].Properties},
		"limits":   {`{bottles: {a: {limits: {xxxxxxxxxxxxxxxx: 1}}}}`, schema.Defs["limits"].Properties},
		"agent":    {`{bottles: {a: {}}, agents: {b: {bottle: a, xxxxxxxxxxxxxxxx: 1}}}`, schema.Defs["agent"].Properties},
	} {
		_, err := Parse("m.yaml", []byte(c.manifest))
		if err == nil {
			t.Fatalf("%s: no error for an unknown key", name)
		}
		found := known.FindStringSubmatch(hint.Of(err))
		if found == nil {
			t.Fatalf("%s: %v", name, err)
		}
		parser := strings.Split(found[1], ", ")
		if got := sortedKeys(c.keys); !slices.Equal(got, parser) {
			t.Errorf("%s: the schema has %q, the parser %q", name, got, parser)
		}
	}
}

// TestStarter checks that the starter is valid for schema and parser, also with all comments
// turned into settings.
func TestStarter(t *testing.T) {
	schema := compileSchema(t)
	complete := regexp.MustCompile(`(?m)^( *)# (- |ssh:|  - |git:|build:|[a-zA-Z_]+:|  You)`).ReplaceAll(Starter, []byte("$1$2"))
	if bytes.Equal(complete, Starter) {
		t.Fatal("no comment was turned into a setting")
	}
	for _, text := range [][]byte{Starter, complete} {
		m, err := Parse("bottle.yaml", text)
		if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
		doc, ok := readDocument("bottle.yaml", text)
		if !ok {
			t.Fatal("no document")
		}
		if err := schema.Validate(doc.value); err != nil {
			t.Error(err)
		}
		if m.Agents["claude"] == nil {
			t.Error("no agent called claude")
		}
	}
	// bottle init --help promises a comment for each key.
	for object, keys := range schemaKeys(t) {
		for _, key := range keys {
			if !regexp.MustCompile(`\b` + key + `:`).Match(Starter) {
				t.Errorf("no comment for %s of %s", key, object)
			}
		}
	}
	m, _ := Parse("bottle.yaml", complete)
	if b := m.Bottles["dev"]; b.Build == nil || len(b.Env) != 8 || len(b.Egress.Allow) != 4 || len(b.SSH) != 1 || b.Git == nil {
		t.Errorf("missing settings: %+v", b)
	}
}

// TestSchemaAddress checks that the schema's id and the starter manifest refer to the
// file in the repository.
func TestSchemaAddress(t *testing.T) {
	const address = "https://raw.githubusercontent.com/bot-bottle/bottle/main/manifest/schema/bottle.schema.json"
	var schema struct {
		ID string `json:"$id"`
	}
	data, err := os.ReadFile("schema/bottle.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &schema); err != nil {
		t.Fatal(err)
	}
	if schema.ID != address {
		t.Errorf("$id is %s, want %s", schema.ID, address)
	}
	if !strings.Contains(string(Starter), "$schema="+address+"\n") {
		t.Errorf("the starter manifest does not name %s", address)
	}
}
