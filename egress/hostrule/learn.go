package hostrule

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// Bounds of what is learned about one host, and of what is proposed for it.
const (
	maxLearned  = 1000 // paths
	maxProposed = 8    // paths of one rule
)

// Learner collects requests to a host in order to propose rules for it. The zero value has
// none.
type Learner struct {
	methods map[string][]string // of paths that are not git's, by path
	upgrade []string            // paths
	repos   map[string]*learnedRepo
	// more is set if there were more paths than can be collected.
	more bool
}

// learnedRepo is what was requested of a repository.
type learnedRepo struct {
	write bool
	refs  []string // that were pushed
	all   bool     // there were more refs than were named
}

// addRefs adds the refs of a push.
func (r *learnedRepo) addRefs(refs []string) {
	for _, ref := range refs {
		switch {
		// The text comes from an agent. What is a pattern in a rule is no ref.
		case checkRef(ref) != nil, len(ref) > maxPattern, len(r.refs) == maxLearned:
			r.all = true
		case !slices.Contains(r.refs, ref):
			r.refs = append(r.refs, ref)
		}
	}
}

// push returns patterns of the refs; none: all refs are permitted.
func (r *learnedRepo) push() []string {
	if r.all || len(r.refs) == 0 {
		return nil
	}
	var paths []string
	for _, ref := range r.refs {
		paths = append(paths, "/"+ref)
	}
	paths = summarize(paths)
	for i, p := range paths {
		paths[i] = p[1:]
		if CheckRef(paths[i]) != nil {
			return nil // what they have in common is refs/ only
		}
	}
	return paths
}

// Add adds a request, by its decoded path, the status of its response and, of a push, the
// refs.
func (l *Learner) Add(method, path string, status int, refs []string) {
	if repo, write, ok := learnGit(method, path); ok {
		if l.repos == nil {
			l.repos = map[string]*learnedRepo{}
		}
		if l.repos[repo] == nil && len(l.repos) < maxPatterns {
			l.repos[repo] = &learnedRepo{}
		}
		if r := l.repos[repo]; r != nil {
			r.write = r.write || write
			r.addRefs(refs)
		}
		return
	}
	if method == http.MethodHead {
		method = http.MethodGet
	}
	// The text comes from an agent.
	if CheckMethod(method) != nil || CheckPath(path) != nil || strings.Contains(path, "*") || len(path) > maxPattern {
		return
	}
	if l.methods == nil {
		l.methods = map[string][]string{}
	}
	methods, known := l.methods[path]
	if !known && len(l.methods) == maxLearned {
		l.more = true
		return
	}
	if !slices.Contains(methods, method) && len(methods) < maxPatterns {
		l.methods[path] = append(methods, method)
	}
	if status == http.StatusSwitchingProtocols && !slices.Contains(l.upgrade, path) {
		l.upgrade = append(l.upgrade, path)
	}
}

// learnForm matches the paths of git and Git LFS below a repository.
var learnForm = lazyregexp.New(`^/(.+?)(?:\.git)?/(info/refs|git-upload-pack|git-receive-pack|info/lfs/.+|gitlab-lfs/.+)$`)

// learnGit recognises a request of git by its path. The query of the first request of a
// push is not known, but the push itself follows.
func learnGit(method, path string) (repo string, write, ok bool) {
	m := learnForm().FindStringSubmatch(path)
	if m == nil || CheckRepo(m[1]) != nil {
		return "", false, false
	}
	return m[1], m[2] == receivePack || method == http.MethodPut, true
}

// gitRules returns rules for the repositories, one for each direction and list of refs.
func (l *Learner) gitRules(host string) []Rule {
	var out []Rule
	at := map[string]int{}
	for _, repo := range slices.Sorted(maps.Keys(l.repos)) {
		r := Rule{Host: host, Git: GitRead}
		if l.repos[repo].write {
			r.Git, r.Push = GitWrite, l.repos[repo].push()
		}
		key := r.Git + " " + strings.Join(r.Push, " ") // refs have no blanks
		i, known := at[key]
		if !known {
			i = len(out)
			at[key] = i
			out = append(out, r)
		}
		out[i].Repos = append(out[i].Repos, repo)
	}
	slices.SortStableFunc(out, func(a, b Rule) int { return strings.Compare(a.Git, b.Git) })
	return out
}

// Rules returns rules that allow the requests and few others; none if there were none.
func (l *Learner) Rules(host string) []Rule {
	out := l.gitRules(host)
	byMethods := map[string][]string{}
	for path, methods := range l.methods {
		slices.Sort(methods)
		key := strings.Join(methods, " ")
		if slices.Contains(l.upgrade, path) {
			key += " upgrade"
		}
		byMethods[key] = append(byMethods[key], path)
	}
	for _, key := range slices.Sorted(maps.Keys(byMethods)) {
		methods, upgrade := strings.CutSuffix(key, " upgrade")
		r := Rule{Host: host, Methods: strings.Split(methods, " "), Paths: summarize(byMethods[key]), Upgrade: upgrade}
		if l.more {
			r.Paths = []string{"/**"}
		}
		out = append(out, r)
	}
	return out
}

// summarize replaces paths with a common beginning by a pattern, until few are left.
func summarize(paths []string) []string {
	depth := 0
	for _, p := range paths {
		depth = max(depth, strings.Count(p, "/"))
	}
	for len(paths) > maxProposed && depth > 0 {
		depth--
		out := map[string]bool{}
		for _, p := range paths {
			out[cut(p, depth)] = true
		}
		paths = slices.Collect(maps.Keys(out))
	}
	slices.Sort(paths)
	return paths
}

// cut replaces what follows the first segments of a path.
func cut(path string, segments int) string {
	at := 0
	for range segments {
		next := strings.IndexByte(path[at+1:], '/')
		if next < 0 {
			return path
		}
		at += 1 + next
	}
	return path[:at] + "/**"
}

// YAML returns the rule as an entry of egress.allow in a manifest, on one line.
func (r Rule) YAML() string {
	var parts []string
	text := func(key, value string) {
		if value != "" {
			parts = append(parts, key+": "+value)
		}
	}
	list := func(key string, values []string) {
		quoted := make([]string, len(values))
		for i, v := range values {
			quoted[i] = quote(v)
		}
		if len(values) > 0 {
			text(key, "["+strings.Join(quoted, ", ")+"]")
		}
	}
	text("host", quote(r.Host))
	text("git", r.Git)
	list("repos", r.Repos)
	list("push", r.Push)
	list("methods", r.Methods)
	list("paths", r.Paths)
	if r.Upgrade {
		text("upgrade", "true")
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// plainText matches texts that need no quotes, and no words with a meaning in YAML.
var plainText = lazyregexp.New(`^(?:GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|[A-Za-z][A-Za-z0-9-]*[./][A-Za-z0-9./-]*)$`)

// quote returns a text as YAML reads it back.
func quote(s string) string {
	if plainText().MatchString(s) {
		return s
	}
	data, err := json.Marshal(s)
	if err != nil {
		return `""` // cannot happen: it is a text
	}
	return string(data)
}
