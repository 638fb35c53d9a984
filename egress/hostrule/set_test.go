package hostrule

import (
	"strings"
	"testing"
)

func TestMethodsAndPaths(t *testing.T) {
	rules := []Rule{
		{Host: "h.test", Methods: []string{"GET"}, Paths: []string{"/repos/me/x/**", "/user", "/v*/list/*"}},
		{Host: "h.test", Methods: []string{"POST"}, Paths: []string{"/repos/me/x/issues"}},
	}
	for _, c := range []struct {
		method, target string
		headers        []string
		want           string // part of the reason; empty: allowed
	}{
		{method: "GET", target: "/user"},
		{method: "HEAD", target: "/user"},
		{method: "GET", target: "/user?x=/../y"},
		{method: "GET", target: "/repos/me/x/"},
		{method: "GET", target: "/repos/me/x/a/b%20c"},
		{method: "GET", target: "/repos/me/x/caf%C3%A9"},
		{method: "GET", target: "/v1/list/a"},
		{method: "POST", target: "/repos/me/x/issues"},

		{method: "GET", target: "/repos/me/x", want: "no rule"},
		{method: "GET", target: "/repos/me/xy/a", want: "no rule"},
		{method: "GET", target: "/v1/list/a/b", want: "no rule"},
		{method: "GET", target: "/v1/2/list/a", want: "no rule"},
		{method: "GET", target: "/USER", want: "no rule"},
		{method: "GET", target: "/user/", want: "no rule"},
		{method: "GET", target: "/", want: "no rule"},
		{method: "DELETE", target: "/repos/me/x/a", want: "no rule for this host allows DELETE"},
		{method: "POST", target: "/user", want: "no rule"},
		{method: "get", target: "/user", want: "no rule for this host allows this method"},
		{method: "PROPFIND", target: "/user", want: "no rule"},

		{method: "GET", target: "/repos/me/x/../../../admin", want: "dot segment"},
		{method: "GET", target: "/repos/me/x/..", want: "dot segment"},
		{method: "GET", target: "/repos/me/x/./a", want: "dot segment"},
		{method: "GET", target: "/repos/me/x/%2e%2e/%2E./admin", want: "needs none"},
		{method: "GET", target: "/repos/me/x/..%2f..%2fadmin", want: "escaped slash"},
		{method: "GET", target: "/repos/me/x/%252e%252e/admin", want: "ambiguous"},
		{method: "GET", target: "/repos/me/x/..%5c..%5cadmin", want: `'\\'`},
		{method: "GET", target: `/repos/me/x/..\..\admin`, want: `'\\'`},
		{method: "GET", target: "/repos/me/x/..;/admin", want: "';'"},
		{method: "GET", target: "/repos/me/x/a;b=c", want: "';'"},
		{method: "GET", target: "/repos/me/x/a%3bb", want: "';'"},
		{method: "GET", target: "/repos/me/x/%61", want: "needs none"},
		{method: "GET", target: "/%75ser", want: "needs none"},
		{method: "GET", target: "/repos/me/x//admin", want: "empty segment"},
		{method: "GET", target: "//user", want: "ambiguous"},
		{method: "GET", target: "/repos/me/x/a%00b", want: "ambiguous"},
		{method: "GET", target: "/repos/me/x/a%0ab", want: "ambiguous"},
		{method: "GET", target: "/repos/me/x/%c0%ae%c0%ae/admin", want: "not UTF-8"},
		{method: "GET", target: "/repos/me/x/%ff", want: "not UTF-8"},
		{method: "GET", target: "/repos/me/x/a#b", want: "'#'"},
		{method: "GET", target: "/repos/me/x/a%23b", want: "'#'"},
		{method: "GET", target: "/repos/me/x/a%3fb", want: "'?'"},
		{method: "GET", target: "/repos/me/x/" + strings.Repeat("a", maxPath), want: "longer"},
		{method: "GET", target: "https://h.test/user", want: "slash"},
		{method: "OPTIONS", target: "*", want: "slash"},

		{method: "POST", target: "/repos/me/x/issues", headers: []string{"X-HTTP-Method-Override: DELETE"}, want: "X-Http-Method-Override"},
		{method: "POST", target: "/repos/me/x/issues", headers: []string{"X-HTTP-Method: DELETE"}, want: "X-Http-Method"},
		{method: "POST", target: "/repos/me/x/issues", headers: []string{"x_method_override: DELETE"}, want: "X-Method-Override"},
		{method: "POST", target: "/repos/me/x/issues?a=b&_METHOD=DELETE", want: "parameter"},
		{method: "POST", target: "/repos/me/x/issues?%5fmethod=DELETE", want: "parameter"},
		{method: "GET", target: "/user", headers: []string{"X-Original-URL: /admin"}, want: "X-Original-Url"},
		{method: "GET", target: "/user", headers: []string{"X-Rewrite-Url: /admin"}, want: "X-Rewrite-Url"},
		{method: "GET", target: "/user", headers: []string{"Connection: Upgrade", "Upgrade: websocket"}, want: "no upgrade"},
		{method: "GET", target: "/user", headers: []string{"Upgrade:"}, want: "no upgrade"},
	} {
		got := verdict(NewSet(rules).Check(request(t, c.method, c.target, c.headers...)))
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s %s %q: got %q, want %q", c.method, c.target, c.headers, got, c.want)
		}
		// Control: what is refused is so because of the rules.
		if got := verdict(NewSet(nil).Check(request(t, c.method, c.target, c.headers...))); !strings.Contains(got, "no rule") {
			t.Errorf("without rules: %q", got)
		}
	}
}

// TestUpgrade: an upgrade needs a rule that permits it for the path.
func TestUpgrade(t *testing.T) {
	s := NewSet([]Rule{{Methods: []string{"GET"}, Paths: []string{"/ws"}, Upgrade: true}, {Paths: []string{"/**"}}})
	up := []string{"Connection: Upgrade", "Upgrade: websocket"}
	for target, want := range map[string]string{"/ws": "", "/other": "no upgrade"} {
		if got := verdict(s.Check(request(t, "GET", target, up...))); want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%s: got %q", target, got)
		}
	}
	if got := verdict(s.Check(request(t, "GET", "/other"))); got != "" {
		t.Errorf("without an upgrade: %q", got)
	}
}

// TestMethodsOnly: a rule without paths has no opinion on how a path is written.
func TestMethodsOnly(t *testing.T) {
	s := NewSet([]Rule{{Methods: []string{"GET"}}})
	if got := verdict(s.Check(request(t, "GET", "/a//b/..%2fc;d"))); got != "" {
		t.Error(got)
	}
	if got := verdict(s.Check(request(t, "POST", "/a"))); got == "" {
		t.Error("POST is allowed")
	}
}

func TestRuleChecks(t *testing.T) {
	for _, c := range []struct {
		rule Rule
		want string
	}{
		{Rule{Methods: []string{"GET"}}, ""},
		{Rule{Git: GitWrite, Repos: []string{"me/x"}, Push: []string{"refs/heads/b/*", "refs/**"}, Paths: []string{"/raw/**"}, Methods: []string{"GET"}}, ""},
		{Rule{}, "missing methods"},
		{Rule{Git: "all"}, "invalid git"},
		{Rule{Methods: []string{"CONNECT"}}, "invalid method"},
		{Rule{Paths: []string{"/" + strings.Repeat("a", maxPattern)}}, "too long"},
		{Rule{Paths: make([]string, maxPatterns+1)}, "too many"},
		{Rule{Git: GitWrite, Push: []string{"refs/heads/a.lock"}}, "invalid ref"},
		{Rule{Git: GitWrite, Push: []string{"refs/heads/***"}}, "invalid ref"},
		{Rule{Git: GitWrite, Push: []string{"refs/heads/a?"}}, "invalid ref"},
		{Rule{Git: GitRead, Repos: []string{"me/../x"}}, "dot segment"},
	} {
		err := c.rule.Check()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: got %v, want %q", c.rule, err, c.want)
		}
	}
	want := "h.test (git write; me/x; push refs/**; GET; /raw/**; upgrade)"
	r := Rule{Host: "h.test", Git: GitWrite, Repos: []string{"me/x"}, Push: []string{"refs/**"}, Methods: []string{"GET"}, Paths: []string{"/raw/**"}, Upgrade: true}
	if r.String() != want {
		t.Errorf("got %s", r)
	}
}

// FuzzPath: a path that is accepted has one reading, and matches as the pattern says.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/a", "/a/..", "/%2e%2e/", "/a%2fb", "/a//b", "/é", "/%C3%A9", "/a%25b", "/\\", "/;a"} {
		f.Add(s)
	}
	inside := compile("/a/**")
	f.Fuzz(func(t *testing.T, raw string) {
		path, err := decodePath(raw)
		if err != nil {
			return
		}
		if strings.ContainsAny(path, "%\\;?#\x00\r\n") || strings.Contains(path, "//") || strings.Contains(path+"/", "/../") || strings.Contains(path+"/", "/./") {
			t.Errorf("accepted %q as %q", raw, path)
		}
		if again, err := decodePath(strings.ReplaceAll(path, " ", "%20")); err == nil && again != path {
			t.Errorf("%q is %q, and then %q", raw, path, again)
		}
		if inside.MatchString(path) != strings.HasPrefix(path, "/a/") {
			t.Errorf("%q", path)
		}
	})
}
