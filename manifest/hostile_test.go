package manifest

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/hint"
	"go.yaml.in/yaml/v4"
)

// hostile is an invalid manifest of up to the maximum size.
type hostile struct{ name, text string }

// fill repeats a text, with a number of six digits in it, up to the maximum size.
func fill(begin, format, end string) string {
	return begin + numbered(maxManifest-len(begin)-len(end), format) + end
}

// numbered repeats a text, with a number of six digits in it, up to size bytes.
func numbered(size int, format string) string {
	var b strings.Builder
	for i := 0; b.Len()+len(format)+8 < size; i++ {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// stretch repeats a text up to the maximum size.
func stretch(begin, text, end string) string {
	return begin + strings.Repeat(text, (maxManifest-len(begin)-len(end))/len(text)) + end
}

// laughs returns a small text whose aliases expand to 10 to the 30th values in the list
// at the given key (a "billion laughs" attack).
func laughs(key string) string {
	s := "version: 1\n? &x0 [a, a, a, a, a, a, a, a, a, a]\n: 1\n"
	for i := 1; i < 30; i++ {
		s += fmt.Sprintf("? &x%d [%s]\n: 1\n", i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*x%d, ", i-1), 10), ", "))
	}
	return s + key + ": *x29\n"
}

// hostiles returns texts that could keep a parser busy, or make it write messages as long
// as the text.
func hostiles() []hostile {
	const (
		half  = maxManifest/2 - 100
		dev   = "version: 1\nbottles:\n  dev: {}\nagents:\n"
		in    = "version: 1\nbottles:\n  dev: "
		agent = "version: 1\nbottles: {dev: {}}\nagents: {a: {bottle: dev, "
	)
	long := strings.Repeat("k", half)
	wide := strings.Repeat("n", 70)
	return []hostile{
		{"lists in lists", stretch("version: 1\nbottles: ", "[", "")},
		{"mappings in mappings", stretch("version: 1\nbottles: ", "{a: ", "")},
		{"lists in lists, indented", stretch("", "- ", "x\n")},
		{"keys of keys", stretch("", "? ", "x\n")},
		{"maximum depth", in + strings.Repeat("[", 9000) + strings.Repeat("]", 9000)},
		{"lists in lists as JSON", stretch(`{"version": 1, "bottles": `, "[", "")},
		{"unknown keys", fill("version: 1\n", "k%06d: 1\n", "")},
		{"unknown keys as JSON", fill(`{"version": 1`, `, "k%06d": 1`, "}")},
		{"unknown keys without values", stretch("{", "a, ", "}")},
		{"unknown keys of bottles", fill("version: 1\nbottles:\n", "  b%06d: {x: 1}\n", "")},
		{"dangling references", fill(dev, "  a%06d: {bottle: dex}\n", "")},
		{"dangling references to many", "version: 1\nbottles:\n" + numbered(half, "  "+wide+"%06d: {}\n") +
			"agents:\n" + numbered(half, "  a%06d: {bottle: "+wide+"xxxxxx}\n")},
		{"a long dangling reference to a long name", in + "{}\n  ? " + long + "\n  : {}\nagents: {a: {bottle: " + long + "x}}\n"},
		{"a long key", stretch("version: 1\n? ", "k", "\n: 1\n")},
		{"a long key of escapes", stretch("version: 1\n? \"", `\u202e`, "\"\n: 1\n")},
		{"a long key twice", in + "{}\n  ? " + long + "\n  : {}\n  ? " + long + "\n  : {}\n"},
		{"a long image", stretch(in+"{image: ", "A", "}\n")},
		{"a long variable", stretch(in+"{env: {? ", "A-", " : 1}}\n")},
		{"a long entry", stretch(in+"{egress: {allow: [", "a.", "]}}\n")},
		{"a long entry beyond ASCII", stretch(in+"{egress: {allow: [", "ü", "]}}\n")},
		{"a long host", stretch(in+"{ssh: [{Host: ", "a", "}]}\n")},
		{"a long host key", stretch(in+"{ssh: [{Host: a, HostKey: ", "a", "}]}\n")},
		{"a long name of an agent", stretch("version: 1\nbottles: {dev: {}}\nagents:\n  ? ", "ab-", "\n  : {bottle: dev}\n")},
		{"a long skill", stretch(agent+"skills: [", "a/", "]}}\n")},
		{"a long tag", stretch("version: 1\nbottles: !", "a", " x\n")},
		{"a long number", stretch(in+"{limits: {pids: ", "9", "}}\n")},
		{"a long size", stretch(in+"{limits: {memory: ", "9", "}}\n")},
		{"a long fraction", stretch(in+"{limits: {cpus: 0.", "9", "x}}\n")},
		{"a long number as JSON", stretch(`{"version": `, "9", "}")},
		{"laughs", laughs("bottles")},
		{"laughs of agents", laughs("agents")},
		{"a list that contains itself", "version: 1\nbottles: &a [*a]\n"},
		{"a mapping that contains itself", "version: 1\nbottles: &a {a: *a, ? *a : *a}\n"},
		{"a long shared key", fill(in+"{build: {args: &a {"+long[:half/2]+": []}}}\n", "  b%06d: {build: {args: *a}}\n", "")},
		{"a long shared variable", fill(in+"{env: &a {"+long[:half/2]+"-: 1}}\n", "  b%06d: {env: *a}\n", "")},
		{"a long shared image", fill(in+"{image: &a "+strings.ToUpper(long[:half/2])+"}\n", "  b%06d: {image: *a}\n", "")},
		{"a long shared text", fill(in+"{image: &a "+long[:half/2]+"}\n", "  b%06d: {build: {context: *a}}\n", "")},
		{"merges", stretch("version: 1\nx: &x {a: 1}\nbottles:\n  dev:\n", "    <<: *x\n", "")},
		{"merges of merges", fill("version: 1\nx: &x {a: 1}\n", "k%06d: &x {<<: [*x, *x]}\n", "")},
		{"tags", stretch("version: 1\nbottles: {dev: {egress: {allow: [", "!x a,", "]}}}\n")},
		{"NUL bytes", stretch("", "\x00", "")},
		{"a NUL byte at the end", stretch("version: 1\nbottles: {}\n", "# comment\n", "\x00")},
		{"invalid UTF-8", stretch("version: 1\nx: ", "\xff", "\n")},
		{"byte order marks", stretch("", "\ufeff", "")},
		{"byte order marks between", stretch("version: 1\n", "\ufeff\n", "bottles: {}\n")},
		{"documents", stretch("", "---\nversion: 1\n", "")},
		{"ends of documents", stretch("", "...\n", "")},
		{"directives", stretch("", "%TAG !a! tag:a\n", "---\nversion: 1\n")},
		{"a repeated key", stretch("", "version: 1\n", "")},
		{"a repeated key as JSON", stretch("{", `"version": 1,`, `"version": 1}`)},
		{"a repeated variable", stretch(in+"\n    env:\n", "      A: 1\n", "")},
		{"anchors", fill("version: 1\n", "? &a%06d x\n: y\n", "")},
		{"aliases of nothing", stretch("version: 1\nx: [", "*a, ", "]\n")},
		{"quotes", stretch("", `"`, "")},
		{"an unclosed quote", stretch(`version: "`, "x\n", "")},
		{"commas", stretch("[", ",", "]")},
		{"colons", stretch("version: 1\nx: [", "a: b, ", "]\n")},
		{"tabs", stretch("", "\t", "")},
		{"halves of pairs as JSON", stretch(`{"version": "`, `\ud800`, `"}`)},
		{"arguments that are lists", stretch(agent+"command: [", "[],", "]}}\n")},
		{"too large by a byte", stretch("version: 1\n", "#", "#\n#")[:maxManifest] + "#"},
	}
}

// cpuTime returns the CPU time of this process, which does not depend on the load of the
// machine.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// lasts returns the shortest CPU time of several calls of a function.
func lasts(t *testing.T, times int, fn func()) time.Duration {
	t.Helper()
	var least time.Duration
	for i := range times {
		begin := cpuTime(t)
		fn()
		if took := cpuTime(t) - begin; i == 0 || took < least {
			least = took
		}
	}
	return least
}

// TestHostileManifests checks that each hostile manifest is rejected with a short message,
// and takes little longer than loading the text as YAML, which in turn is bounded by a
// multiple of the time for a valid manifest of that size.
func TestHostileManifests(t *testing.T) {
	good := []byte(stretch("version: 1\nbottles: {dev: {}}\nagents:\n  a:\n    bottle: dev\n    prompt: |\n", "      A line of a long prompt.\n", ""))
	harmless := lasts(t, 5, func() {
		if _, err := Parse("good.yaml", good); err != nil {
			t.Fatal(err)
		}
	})
	for _, h := range hostiles() {
		data := []byte(h.text)
		if len(data) > maxManifest+1 || strings.HasPrefix(h.name, "a long ") && len(data) < maxManifest*9/10 {
			t.Errorf("%s: %d bytes", h.name, len(data))
		}
		var err error
		took := lasts(t, 1, func() { _, err = Parse("bad.yaml", data) })
		var library time.Duration
		if took > 10*harmless { // otherwise the time to load it as YAML changes no result
			library = lasts(t, 1, func() {
				var n yaml.Node
				_ = yaml.Load(data, &n) // most are not YAML
			})
		}
		if err == nil {
			t.Errorf("%s: no error", h.name)
			continue
		}
		if n := len(err.Error()); n > maxProblems*1000 || len(hint.Split(err)) > maxProblems {
			t.Errorf("%s: a message of %d bytes in %d lines", h.name, n, len(hint.Split(err)))
		}
		for _, e := range hint.Split(err) {
			if !strings.HasPrefix(e.Error(), "bad.yaml:") || strings.ContainsAny(e.Error(), "\n\r\x00\x1b\u202e") {
				t.Errorf("%s: %q", h.name, e)
			}
		}
		if took > 10*(harmless+library) || library > 500*harmless {
			t.Errorf("%s: parsed in %v, by the library in %v; a valid manifest in %v", h.name, took, library, harmless)
		}
		t.Logf("%-40s %6.1f times a valid manifest; %s", h.name, float64(took)/float64(harmless), cut(err.Error(), 100))
	}
}
