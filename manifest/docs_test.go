package manifest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	heading = regexp.MustCompile(`(?m)^#{1,3} (.+)$`)
	// anyHeading matches headings of any depth.
	anyHeading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	keyRow     = regexp.MustCompile("(?m)^\\| `([^`]+)` \\|")
	yamlText   = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
)

// schemaKeys returns the keys of each object in the schema.
func schemaKeys(t *testing.T) map[string][]string {
	t.Helper()
	type object struct {
		Properties map[string]any
		Then       struct{ Properties map[string]any }
	}
	var schema struct {
		object
		Defs map[string]object `json:"$defs"`
	}
	if err := json.Unmarshal(Schema, &schema); err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{"manifest": sortedKeys(schema.Properties), "variable": sortedKeys(schema.Defs["variable"].Then.Properties)}
	for name, def := range schema.Defs {
		if len(def.Properties) > 0 {
			out[name] = sortedKeys(def.Properties)
		}
	}
	return out
}

// TestManifestDocs checks that docs/manifest.md documents exactly the keys of the schema.
func TestManifestDocs(t *testing.T) {
	text, err := os.ReadFile("../docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := map[string]string{}
	begins := heading.FindAllSubmatchIndex(text, -1)
	for i, at := range begins {
		end := len(text)
		if i+1 < len(begins) {
			end = begins[i+1][0]
		}
		sections[string(text[at[2]:at[3]])] = string(text[at[1]:end])
	}
	documented := map[string]string{
		"manifest": "Manifest",
		"bottle":   "Bottle", "build": "Build", "egress": "Egress", "hostRule": "Request rules", "proxy": "Proxy", "sshHost": "SSH",
		"git": "Git", "limits": "Limits", "variable": "Variables", "agent": "Agent",
	}
	for object, want := range schemaKeys(t) {
		section, ok := documented[object]
		if !ok {
			t.Errorf("no documented section for the schema object %s", object)
		}
		var rows []string
		for _, row := range keyRow.FindAllStringSubmatch(sections[section], -1) {
			rows = append(rows, row[1])
		}
		slices.Sort(rows)
		if !slices.Equal(rows, want) {
			t.Errorf("section %q documents %q, want %q", section, rows, want)
		}
	}
}

var (
	docLink  = regexp.MustCompile(`\]\(([^):]*)\)`)
	noAnchor = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestDocLinks checks that each link to a file of this repository leads to an existing file
// and heading.
func TestDocLinks(t *testing.T) {
	docs, err := filepath.Glob("../docs/*.md")
	if err != nil || len(docs) < 5 {
		t.Fatalf("found documents %q, %v", docs, err)
	}
	anchors := map[string][]string{}
	for _, file := range append(docs, "../README.md", "../ARCHITECTURE.md", "../CONTRIBUTING.md", "../CHANGELOG.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		anchors[file] = []string{""}
		for _, h := range anyHeading.FindAllSubmatch(text, -1) {
			slug := noAnchor.ReplaceAllString(strings.ToLower(string(h[1])), "")
			anchors[file] = append(anchors[file], strings.ReplaceAll(slug, " ", "-"))
		}
	}
	for file := range anchors {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, link := range docLink.FindAllSubmatch(text, -1) {
			path, anchor, _ := strings.Cut(string(link[1]), "#")
			target := filepath.Join(filepath.Dir(file), path)
			if path == "" {
				target = file
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: broken link %s: no such file", file, link[1])
			} else if known, ok := anchors[target]; ok && !slices.Contains(known, anchor) {
				t.Errorf("%s: broken link %s: no such heading", file, link[1])
			}
		}
	}
}

// TestExamples checks that the manifests, and parts of bottles, in the documentation are
// valid for the parser and the schema.
func TestExamples(t *testing.T) {
	schema := compileSchema(t)
	for file, want := range map[string]int{"../README.md": 1, "../docs/manifest.md": 5, "../docs/clients.md": 1} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		examples := yamlText.FindAllSubmatch(text, -1)
		if len(examples) < want {
			t.Errorf("%s has %d YAML examples, want at least %d", file, len(examples), want)
		}
		for _, example := range examples {
			// The reader fills in a digest.
			manifest := strings.ReplaceAll(string(example[1]), "sha256:…", "sha256:"+strings.Repeat("0", 64))
			if !strings.HasPrefix(manifest, "version:") {
				part := "    " + strings.ReplaceAll(strings.TrimSpace(manifest), "\n", "\n    ") + "\n"
				if strings.HasPrefix(manifest, "    ") {
					part = manifest
				}
				manifest = "version: 1\nbottles:\n  dev:\n" + part
			}
			m, err := Parse(file, []byte(manifest))
			if err != nil {
				t.Errorf("%v in\n%s", err, manifest)
				continue
			}
			if len(m.Bottles) == 0 {
				t.Errorf("no bottle in\n%s", manifest)
			}
			doc, ok := readDocument(file, []byte(manifest))
			if !ok {
				t.Fatal("no document")
			}
			if err := schema.Validate(doc.value); err != nil {
				t.Errorf("%v in\n%s", err, manifest)
			}
		}
	}
}

var (
	goTest   = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9]+)\(t \*testing\.T\)`)
	docTest  = regexp.MustCompile("`(Test[A-Za-z0-9]+)`")
	promise  = regexp.MustCompile(`(?m)^([0-9]+)\. +\*\*`)
	testsRow = regexp.MustCompile("(?m)^\\| ([0-9]+) \\| (`.*`) \\|$")
)

// TestSecurityDocs checks that docs/security.md names tests for each of its promises, and
// that all tests it names exist.
func TestSecurityDocs(t *testing.T) {
	known := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, _ os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range goTest.FindAllSubmatch(text, -1) {
			known[string(m[1])] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	promises := promise.FindAllSubmatch(text, -1)
	rows := testsRow.FindAllSubmatch(text, -1)
	if len(promises) < 8 || len(rows) != len(promises) {
		t.Fatalf("%d promises and %d rows of tests", len(promises), len(rows))
	}
	for i, row := range rows {
		if string(row[1]) != string(promises[i][1]) {
			t.Errorf("row %d is for promise %s, want %s", i+1, row[1], promises[i][1])
		}
	}
	named := docTest.FindAllSubmatch(text, -1)
	if len(named) < len(promises) {
		t.Errorf("only %d tests are named", len(named))
	}
	for _, m := range named {
		if !known[string(m[1])] {
			t.Errorf("docs/security.md names the test %s, which does not exist", m[1])
		}
	}
}
