package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var (
	docHeading = regexp.MustCompile(`(?m)^##+ (.+)$`)
	docFlags   = regexp.MustCompile("(?m)^\\| (`-[^|]+) \\|")
	docFlag    = regexp.MustCompile("`(-[-a-zA-Z]+)")
)

// docSections returns a document's sections by heading.
func docSections(t *testing.T, file string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	starts := docHeading.FindAllSubmatchIndex(text, -1)
	for i, at := range starts {
		end := len(text)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		out[string(text[at[2]:at[3]])] = string(text[at[1]:end])
	}
	return out
}

// flagNames returns the flags of a set with their dashes.
func flagNames(fs *pflag.FlagSet) []string {
	var out []string
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		out = append(out, "--"+f.Name)
		if f.Shorthand != "" {
			out = append(out, "-"+f.Shorthand)
		}
	})
	slices.Sort(out)
	return out
}

// TestCommandDocs: docs/commands.md has a section for each command, with a row for
// each of its flags, and no other sections or rows.
func TestCommandDocs(t *testing.T) {
	sections := docSections(t, "../../docs/commands.md")
	check := func(heading string, want []string) {
		section, ok := sections[heading]
		if !ok {
			t.Errorf("no section %q", heading)
		}
		var got []string
		for _, row := range docFlags.FindAllStringSubmatch(section, -1) {
			for _, flag := range docFlag.FindAllStringSubmatch(row[1], -1) {
				if name := flag[1]; name != "--help" && name != "-h" {
					got = append(got, name)
				}
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("section %q has the flags\n%q, the command\n%q", heading, got, want)
		}
	}
	root := (&app{}).rootCommand()
	commands := []string{"bottle completion"} // cobra's own
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			switch {
			case sub.Hidden || sub.Name() == "help":
			case sub.HasSubCommands():
				visit(sub)
			default:
				check(sub.CommandPath(), flagNames(sub.LocalNonPersistentFlags()))
				commands = append(commands, sub.CommandPath())
			}
		}
	}
	visit(root)
	for _, cmd := range root.Commands() {
		if !cmd.Hidden && cmd.GroupID == "" {
			t.Errorf("%s is in no group of the help", cmd.Name())
		}
	}
	global := append(flagNames(root.PersistentFlags()), "--version", "-v") // cobra adds these two when it runs
	slices.Sort(global)
	check("Global flags", global)
	for heading := range sections {
		if strings.HasPrefix(heading, "bottle ") && !slices.Contains(commands, heading) {
			t.Errorf("section %q does not belong to a command", heading)
		}
	}
}

// TestDocumentedVariables: docs/commands.md has a row for each environment variable
// that bottle reads.
func TestDocumentedVariables(t *testing.T) {
	section := docSections(t, "../../docs/commands.md")["Environment variables"]
	for _, name := range []string{
		"CONTAINERD_ADDRESS", "CONTAINERD_NAMESPACE", "CONTAINERD_SNAPSHOTTER", "CNI_PATH", "BOTTLE_CNI_CONF",
		"BOTTLE_RUN_DIR", "BOTTLE_STATE_DIR", "BOTTLE_HOSTS_DIR", "BUILDKIT_HOST", "BOTTLE_BUILD_CACHE",
		"CLAUDE_BOTTLE_IMAGE", "CLAUDE_BOTTLE_CONTAINER", "CLAUDE_BOTTLE_DERIVED_IMAGE", "CLAUDE_BOTTLE_OAUTH_TOKEN",
		"XDG_STATE_HOME",
	} {
		if !strings.Contains(section, "\n| `"+name+"`") {
			t.Errorf("no row for %s", name)
		}
	}
}

var (
	comparedRow  = regexp.MustCompile("(?m)^\\| (`[^|]+) \\|([^|]+)\\|([^|]+)\\|([^|]*)\\|$")
	comparedWord = regexp.MustCompile("`([^`]+)`")
)

// TestComparison: docs/commands.md compares each command, and each of its flags, with
// docker's and nerdctl's, and nothing else.
func TestComparison(t *testing.T) {
	compared := map[string]bool{}
	for _, row := range comparedRow.FindAllStringSubmatch(docSections(t, "../../docs/commands.md")["Compared with docker and nerdctl"], -1) {
		words := comparedWord.FindAllStringSubmatch(row[1], -1)
		keys := []string{words[0][1]} // the command
		if len(words) > 1 {
			keys = nil
			for _, w := range words[1:] {
				keys = append(keys, words[0][1]+" "+w[1])
			}
		}
		for _, key := range keys {
			if compared[key] {
				t.Errorf("%s is compared twice", key)
			}
			compared[key] = true
		}
		for i, cell := range row[2:4] {
			if strings.TrimSpace(cell) == "" {
				t.Errorf("%s: nothing is said of %s", row[1], []string{"docker", "nerdctl"}[i])
			}
		}
	}
	want := map[string]bool{"completion": true} // cobra's own
	root := (&app{}).rootCommand()
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		for _, sub := range cmd.Commands() {
			name := strings.TrimPrefix(sub.CommandPath(), "bottle ")
			switch {
			case sub.Hidden || sub.Name() == "help":
			case sub.HasSubCommands():
				visit(sub)
			default:
				want[name] = true
				for _, flag := range flagNames(sub.LocalNonPersistentFlags()) {
					want[name+" "+flag] = true
				}
			}
		}
	}
	visit(root)
	for key := range want {
		if !compared[key] {
			t.Errorf("docs/commands.md does not compare %s", key)
		}
	}
	for key := range compared {
		if !want[key] {
			t.Errorf("docs/commands.md compares %s, which does not exist", key)
		}
	}
}
