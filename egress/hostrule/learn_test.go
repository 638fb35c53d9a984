package hostrule

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestLearn(t *testing.T) {
	var l Learner
	if got := l.Rules("h.test"); len(got) > 0 {
		t.Errorf("nothing was learned: %v", got)
	}
	for _, r := range []string{
		"GET /me/x.git/info/refs", "POST /me/x.git/git-upload-pack", "GET /me/y/info/refs", "POST /me/y/git-receive-pack", "POST /me/y/git-upload-pack",
		"PUT /me/z.git/info/lfs/objects/" + strings.Repeat("ab", 32), "GET /user", "HEAD /user", "GET /a b", "POST /issues", "GET /issues", "GET /ws 101",
		"GET /bad*", "GET /a/../b", "get /user", "GET ", "GET *", "GET /a%2fb",
	} {
		method, path, _ := strings.Cut(r, " ")
		path, upgraded := strings.CutSuffix(path, " 101")
		l.Add(method, path, map[bool]int{true: 101, false: 200}[upgraded], nil)
	}
	want := []string{
		"{host: h.test, git: read, repos: [me/x]}",
		"{host: h.test, git: write, repos: [me/y, me/z]}",
		`{host: h.test, methods: [GET], paths: ["/a b", "/user"]}`,
		`{host: h.test, methods: [GET, POST], paths: ["/issues"]}`,
		`{host: h.test, methods: [GET], paths: ["/ws"], upgrade: true}`,
	}
	var got []string
	for _, r := range l.Rules("h.test") {
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", r, err)
		}
		got = append(got, r.YAML())
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got := (Rule{Host: "h.test:8443", Push: []string{"refs/heads/*"}}).YAML(); got != `{host: "h.test:8443", push: ["refs/heads/*"]}` {
		t.Errorf("got %s", got)
	}
}

// TestLearnPushes: the refs that were pushed are permitted, each for its repository, unless
// they are not all known. Similar ones are joined.
func TestLearnPushes(t *testing.T) {
	var many []string
	for i := range 20 {
		many = append(many, fmt.Sprintf("refs/heads/bottle/%d", i))
	}
	var l Learner
	for _, p := range []struct {
		repo string
		refs []string
	}{
		{"a", []string{"refs/heads/x", "refs/tags/v1"}}, {"a", []string{"refs/heads/x"}}, {"b", []string{"refs/tags/v1", "refs/heads/x"}},
		{"c", []string{"refs/heads/x", OtherRefs}}, {"d", many}, {"e", []string{"refs/heads/*"}}, {"f", append([]string{"refs/notes/x"}, many...)},
		{"g", nil}, {"h", append([]string{"refs/other/x/y"}, many...)},
	} {
		l.Add("POST", "/"+p.repo+"/git-receive-pack", 200, p.refs)
	}
	want := []string{
		`{host: h.test, git: write, repos: ["a", "b"], push: [refs/heads/x, refs/tags/v1]}`,
		`{host: h.test, git: write, repos: ["c", "e", "g"]}`,
		`{host: h.test, git: write, repos: ["d"], push: ["refs/heads/bottle/**"]}`,
		`{host: h.test, git: write, repos: ["f"], push: ["refs/heads/bottle/**", refs/notes/x]}`,
		`{host: h.test, git: write, repos: ["h"], push: ["refs/heads/bottle/**", "refs/other/x/**"]}`,
	}
	var got []string
	for _, r := range l.Rules("h.test") {
		if err := r.Check(); err != nil {
			t.Errorf("%s: %v", r, err)
		}
		got = append(got, r.YAML())
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestLearnManyPaths: similar paths are joined, and the rules still allow every request.
func TestLearnManyPaths(t *testing.T) {
	for _, n := range []int{3, 100, maxLearned + 10} {
		var l Learner
		for i := range n {
			l.Add("GET", fmt.Sprintf("/repos/me/x/issues/%d", i), 200, nil)
			l.Add("GET", fmt.Sprintf("/users/%d", i), 200, nil)
		}
		l.Add("GET", "/", 200, nil)
		rules := l.Rules("h.test")
		if len(rules) != 1 || len(rules[0].Paths) > maxProposed {
			t.Fatalf("%d paths: %v", n, rules)
		}
		set := NewSet(rules)
		for _, path := range []string{"/repos/me/x/issues/0", fmt.Sprintf("/users/%d", n-1), "/"} {
			if got := verdict(set.Check(request(t, "GET", path))); got != "" {
				t.Errorf("%d paths: %s: %s", n, path, got)
			}
		}
		if got := verdict(set.Check(request(t, "GET", "/admin"))); n == 100 && got == "" {
			t.Errorf("%v allows everything", rules)
		}
	}
}
