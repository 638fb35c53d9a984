package agents

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the table in docs/agents.md")

const docs = "../docs/agents.md"

// TestDocs compares the table of kinds in docs/agents.md with the kinds.
func TestDocs(t *testing.T) {
	var table strings.Builder
	table.WriteString("\n| kind | agent | image | hosts | login | prompt | skills | `unattended: true` |\n|---|---|---|---|---|---|---|---|\n")
	for _, name := range Names() {
		k := Get(name)
		image, hosts := "yours", k.Hosts
		if k.Image != nil {
			image = "Debian, " + k.Image.Source
		}
		if len(hosts) == 0 {
			hosts = []string{"those of the login"}
		}
		var logins []string
		for _, l := range k.Logins {
			text := "`" + l.Variable + "`"
			if len(l.Hosts) > 0 {
				text += " (" + strings.Join(l.Hosts, ", ") + ")"
			}
			logins = append(logins, text)
		}
		prompt := "`BOTTLE_PROMPT_FILE` only"
		if k.Prompt.Option != "" {
			prompt = "`" + k.Prompt.Option + "`"
		}
		if k.Prompt.File != "" {
			prompt = "`" + k.Place(k.Prompt.File, "~", "") + "`"
		}
		skills := "none"
		if k.Skills != "" {
			skills = "`" + k.Place(k.Skills, "~", "") + "`"
		}
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s | %s | %s | %s | %s |\n", name, k.Title, image, strings.Join(hosts, ", "),
			strings.Join(logins, ", "), prompt, skills, unattendedText(k.Unattended))
	}
	table.WriteString("\n")
	text, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), "<!-- kinds -->\n")
	old, after, ended := strings.Cut(rest, "<!-- end -->\n")
	if !ok || !ended {
		t.Fatalf("%s has no table of kinds", docs)
	}
	if old == table.String() {
		return
	}
	if !*update {
		t.Fatalf("the table differs (rewrite with -update):\n%s", table.String())
	}
	if err := os.WriteFile(docs, []byte(before+"<!-- kinds -->\n"+table.String()+"<!-- end -->\n"+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func unattendedText(m Mode) string {
	var parts []string
	if len(m.Options) > 0 {
		parts = append(parts, "`"+strings.Join(m.Options, " ")+"`")
	}
	for name, value := range m.Env {
		parts = append(parts, "`"+name+"="+value+"`")
	}
	for _, f := range m.Files {
		for key, value := range f.Set {
			parts = append(parts, fmt.Sprintf("`%s: %v`", key, value))
		}
	}
	return strings.Join(parts, ", ")
}
