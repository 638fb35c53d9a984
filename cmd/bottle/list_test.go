package main

import (
	"strings"
	"testing"

	"github.com/bot-bottle/bottle"
)

func TestFilters(t *testing.T) {
	list := []bottle.Status{
		{Name: "claude-bottle-impl", Agent: "impl", Image: "docker.io/library/a:1", Runtime: "runsc", Proxy: "builtin", Status: "running"},
		{Name: "claude-bottle-impl-2", Agent: "impl", Image: "docker.io/library/b:1", Runtime: "runc", Proxy: "pipelock", Status: "running, proxy is missing"},
		{Name: "other", Agent: "review", Image: "docker.io/library/a:1", Runtime: "runsc", Proxy: "builtin", Status: "stopped"},
	}
	for _, c := range []struct{ filters, want string }{
		{"", "claude-bottle-impl claude-bottle-impl-2 other"},
		{"agent=impl", "claude-bottle-impl claude-bottle-impl-2"},
		{"name=impl", "claude-bottle-impl"},
		{"name=claude-bottle-impl", "claude-bottle-impl"},
		{"name=impl*", "claude-bottle-impl claude-bottle-impl-2"},
		{"status=running", "claude-bottle-impl claude-bottle-impl-2"},
		{"status=stopped", "other"},
		{"agent=impl runtime=runc", "claude-bottle-impl-2"},
		{"runtime=runc runtime=runsc", "claude-bottle-impl claude-bottle-impl-2 other"},
		{"proxy=pipelock", "claude-bottle-impl-2"},
		{"image=docker.io/library/a:1", "claude-bottle-impl other"},
		{"agent=nobody", ""},
	} {
		keep, err := parseFilters(strings.Fields(c.filters))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range list {
			if keep.match(s) {
				got = append(got, s.Name)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q: %q, want %q", c.filters, got, c.want)
		}
	}
	for _, bad := range []string{"impl", "color=red", "name=[", "=x", ""} {
		if _, err := parseFilters([]string{bad}); err == nil {
			t.Errorf("filter %q is accepted", bad)
		}
	}
}

func TestFormat(t *testing.T) {
	list := []bottle.Status{{Name: "a", Status: "running"}, {Name: "b\x1b[31m", Status: "stopped"}}
	for format, want := range map[string]string{
		"{{.Name}} {{.Status}}": "a running\nb\ufffd[31m stopped\n",
		"{{json .Name}}":        "\"a\"\n\"b\\u001b[31m\"\n",
	} {
		a, stdout, _ := newApp()
		show, err := parseFormat(format)
		if err != nil {
			t.Fatal(err)
		}
		if err := printEach(a, show, list); err != nil || stdout.String() != want {
			t.Errorf("%q: %q, %v; want %q", format, stdout, err, want)
		}
	}
	if _, err := parseFormat("{{.Name"); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a bad template: %v", err)
	}
	show, err := parseFormat("{{.Color}}")
	if err != nil {
		t.Fatal(err)
	}
	a, _, _ := newApp()
	if err := printEach(a, show, list); err == nil || !strings.HasPrefix(err.Error(), "invalid format: ") {
		t.Errorf("an unknown field: %v", err)
	}
	if show, err := parseFormat("table"); show != nil || err != nil {
		t.Errorf("table: %v", err)
	}
}
