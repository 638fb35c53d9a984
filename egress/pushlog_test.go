package egress

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/egress/hostrule"
)

// TestPushLog: the log has the refs of every push in a terminated tunnel, and none of a fetch.
// The rules that are proposed from it permit these pushes and no others.
func TestPushLog(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("http2=%v", http2), func(t *testing.T) {
			s := newGitScene(t, http2, hostrule.Rule{Git: hostrule.GitWrite})
			s.mustGit("", "fetch", "--quiet", "origin")
			s.mustGit("", "push", "--quiet", "origin", "HEAD:bottle/new", ":bottle/old")
			s.mustGit("", "-c", "http.postBuffer=65536", "push", "--quiet", "origin", "v1", "HEAD:bottle/chunked")
			many := []string{"push", "--quiet", "https://" + s.target + "/me/other"}
			for i := range 20 {
				many = append(many, fmt.Sprintf("HEAD:refs/heads/n/%02d", i))
			}
			s.mustGit("", many...)

			// A request is logged when it has ended, which git may see first.
			for ref, want := range map[string][]string{
				"refs/heads/bottle/new": {"refs/heads/bottle/new", "refs/heads/bottle/old"},
				"refs/tags/v1":          {"refs/heads/bottle/chunked", "refs/tags/v1"},
			} {
				e := s.log.wait(t, ref, func(e Entry) bool { return e.Event == EventRequest && slices.Contains(e.Refs, ref) })
				if slices.Sort(e.Refs); !slices.Equal(e.Refs, want) || !strings.HasSuffix(e.URL, "/me/x/git-receive-pack") {
					t.Errorf("%s has %q, want %q", e.URL, e.Refs, want)
				}
			}
			e := s.log.wait(t, "many refs", func(e Entry) bool { return e.Event == EventRequest && slices.Contains(e.Refs, hostrule.OtherRefs) })
			if len(e.Refs) != 17 || !strings.HasSuffix(e.URL, "/me/other/git-receive-pack") {
				t.Errorf("a push of many refs: %s, %q", e.URL, e.Refs)
			}
			var learned hostrule.Learner
			for _, e := range s.log.events(EventRequest) {
				if len(e.Refs) > 0 && e.Method != http.MethodPost {
					t.Errorf("%s %s has refs: %q", e.Method, e.URL, e.Refs)
				}
				learned.Add(e.Method, strings.TrimPrefix(e.URL, "https://"+s.target), e.Status, e.Refs)
			}
			rules := learned.Rules(s.target)
			var text []string
			for i, r := range rules {
				text = append(text, r.YAML())
				rules[i].Host = ""
			}
			want := []string{
				`{host: "` + s.target + `", git: write, repos: [me/x], push: [refs/heads/bottle/chunked, refs/heads/bottle/new, refs/heads/bottle/old, refs/tags/v1]}`,
				`{host: "` + s.target + `", git: write, repos: [me/other]}`,
			}
			slices.Sort(text)
			slices.Sort(want)
			if !slices.Equal(text, want) {
				t.Errorf("proposed\n%s\nwant\n%s", strings.Join(text, "\n"), strings.Join(want, "\n"))
			}
			next := newGitScene(t, http2, rules...)
			next.mustGit("", "push", "--quiet", "origin", "HEAD:bottle/new", "v1")
			if out, err := next.git("", "push", "origin", "HEAD:main"); err == nil || !strings.Contains(out, "no rule for this host allows a push to refs/heads/main") {
				t.Errorf("another ref: %v\n%s", err, out)
			}
		})
	}
}

// TestPushLogSecrets: what looks like a credential in the name of a ref is not logged.
func TestPushLogSecrets(t *testing.T) {
	s := newGitScene(t, false, hostrule.Rule{Git: hostrule.GitWrite})
	s.mustGit("", "push", "--quiet", "origin", "HEAD:refs/heads/"+testSecret)
	e := s.log.wait(t, "push", func(e Entry) bool { return len(e.Refs) > 0 })
	if strings.Contains(e.Refs[0], testSecret) || !strings.HasPrefix(e.Refs[0], "refs/heads/") {
		t.Errorf("logged %q", e.Refs)
	}
}
