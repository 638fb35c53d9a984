package hostrule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// maxRead is how much of a body is read for a decision, in bytes: a list of some hundred
// refs. It is kept until it was sent on, for as many requests as the proxy has. maxReading
// bounds how many are read at a time.
const (
	maxRead    = 64 << 10
	maxReading = 8
)

// reading is a slot for each body that is being read. It bounds the memory of all hosts
// together.
var reading = make(chan struct{}, maxReading)

// gitForm matches the end of paths of the git protocol and of Git LFS. It ignores case,
// because some servers do: such a path is none of git's, and no other either.
var gitForm = lazyregexp.New(`(?i)/(?:info/refs|git-(?:upload-pack|receive-pack|upload-archive)|info/lfs(?:/.*)?|gitlab-lfs(?:/.*)?)/?$`)

func isGit(path string) bool { return gitForm().MatchString(path) }

// gitRequest is a request of the git protocol or of Git LFS.
type gitRequest struct {
	repo  string // the repository's path
	write bool
	// push and batch say that the body has to be read: for the refs, and for the direction.
	push, batch bool
}

// Endpoints of a repository. The query of a service is compared as git sends it.
const (
	uploadPack  = "git-upload-pack"
	receivePack = "git-receive-pack"
)

const oidForm = `[0-9a-f]{64}`

// lfsForms are the endpoints of Git LFS below a repository: the batch API, the locks and
// the basic transfers of common servers.
var lfsForms = []struct {
	form  func() *regexp.Regexp
	read  []string // methods of a fetch
	write []string // methods of a push
}{
	{lazyregexp.New(`^(.+)/info/lfs/objects/batch$`), nil, nil}, // the body says which
	{lazyregexp.New(`^(.+)/info/lfs/locks$`), []string{"GET"}, []string{"POST"}},
	{lazyregexp.New(`^(.+)/info/lfs/locks/(?:verify|[A-Za-z0-9._-]+/unlock)$`), nil, []string{"POST"}},
	{lazyregexp.New(`^(.+)/info/lfs/objects/` + oidForm + `(?:/[0-9]+)?$`), []string{"GET", "HEAD"}, []string{"PUT"}},
	{lazyregexp.New(`^(.+)/info/lfs/(?:objects/)?verify$`), nil, []string{"POST"}},
	{lazyregexp.New(`^(.+)/gitlab-lfs/objects/` + oidForm + `(?:/[0-9]+)?$`), []string{"GET", "HEAD"}, []string{"PUT"}},
}

// parseGit recognises a request. It returns false for any that git does not send.
func parseGit(r *http.Request, path string) (gitRequest, bool) {
	if repo, ok := strings.CutSuffix(path, "/info/refs"); ok {
		service, ok := strings.CutPrefix(r.URL.RawQuery, "service=")
		return gitRequest{repo: repo, write: service == receivePack},
			ok && r.Method == http.MethodGet && (service == uploadPack || service == receivePack)
	}
	for _, service := range []string{uploadPack, receivePack} {
		if repo, ok := strings.CutSuffix(path, "/"+service); ok {
			write := service == receivePack
			return gitRequest{repo: repo, write: write, push: write}, r.Method == http.MethodPost && r.URL.RawQuery == ""
		}
	}
	for i, lfs := range lfsForms {
		m := lfs.form().FindStringSubmatch(path)
		switch {
		case m == nil:
		case i == 0:
			return gitRequest{repo: m[1], batch: true}, r.Method == http.MethodPost
		case slices.Contains(lfs.read, r.Method):
			return gitRequest{repo: m[1]}, true
		case slices.Contains(lfs.write, r.Method):
			return gitRequest{repo: m[1], write: true}, true
		}
	}
	return gitRequest{}, false
}

// checkGit decides about a request with a path of git's.
func (s *Set) checkGit(r *http.Request, path string) *Denial {
	req, ok := parseGit(r, path)
	if !ok {
		return deny(http.StatusForbidden, "not a request of git's smart HTTP protocol")
	}
	var rules []compiled
	for _, c := range s.rules {
		if c.Git != "" && c.hasRepo(req.repo) {
			rules = append(rules, c)
		}
	}
	if len(rules) == 0 {
		return deny(http.StatusForbidden, "no rule for this host allows this repository")
	}
	rules = slices.DeleteFunc(rules, func(c compiled) bool { return req.write && c.Git != GitWrite })
	if len(rules) == 0 {
		return deny(http.StatusForbidden, "the repository is read-only here: no rule allows a push")
	}
	switch {
	case req.batch:
		return checkBatch(r, rules)
	case req.push && !slices.ContainsFunc(rules, func(c compiled) bool { return len(c.push) == 0 }):
		return checkPush(r, func(ref string) bool {
			return slices.ContainsFunc(rules, func(c compiled) bool { return matchesAny(c.push, ref) })
		})
	}
	return nil
}

// hasRepo reports whether a repository, by its path, is one of the rule's.
func (c compiled) hasRepo(path string) bool {
	name, ok := strings.CutPrefix(path, "/")
	return ok && name != "" && (len(c.Repos) == 0 || slices.Contains(c.Repos, name) || slices.Contains(c.Repos, strings.TrimSuffix(name, ".git")))
}

// errTooLong ends the reading of a body that is longer than maxRead.
var errTooLong = fmt.Errorf("it is longer than %d bytes", maxRead)

// readHead calls read with the request's body and then puts back what it has read.
func readHead(r *http.Request, read func(io.Reader) error) error {
	if r.Header.Get("Content-Encoding") != "" {
		return errors.New("it has a content encoding, which git does not use here")
	}
	if r.Body == nil {
		return errors.New("it has no body")
	}
	select {
	case reading <- struct{}{}:
		defer func() { <-reading }()
	case <-r.Context().Done():
		return r.Context().Err()
	}
	var head bytes.Buffer
	body := r.Body
	err := read(io.TeeReader(&limited{r: body, left: maxRead}, &head))
	r.Body = &replayed{Reader: io.MultiReader(&head, body), Closer: body}
	return err
}

type replayed struct {
	io.Reader
	io.Closer
}

// limited returns an error, unlike io.LimitReader, when its limit is reached.
type limited struct {
	r    io.Reader
	left int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left == 0 {
		return 0, errTooLong
	}
	n, err := l.r.Read(p[:min(len(p), l.left)])
	l.left -= n
	return n, err
}

// checkBatch decides about a request of the batch API of Git LFS, which says in its body
// whether it is about an upload.
func checkBatch(r *http.Request, rules []compiled) *Denial {
	if slices.ContainsFunc(rules, func(c compiled) bool { return c.Git == GitWrite }) {
		return nil
	}
	operation := ""
	err := readHead(r, func(body io.Reader) (err error) {
		operation, err = readOperation(body)
		return err
	})
	switch {
	case err != nil:
		return lfsDenial(http.StatusBadRequest, "invalid Git LFS request: %v", err)
	case operation != "download":
		return lfsDenial(http.StatusForbidden, "the repository is read-only here: no rule allows an upload")
	}
	return nil
}

// readOperation reads the operation of a batch. A key that another parser could prefer, by
// its order or its case, is an error.
func readOperation(body io.Reader) (string, error) {
	data, err := io.ReadAll(body)
	if err != nil {
		return "", err
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return "", errors.New("it is not a JSON object")
	}
	operation, found := "", false
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return "", errors.New("it is not valid JSON")
		}
		key, _ := t.(string)
		if !strings.EqualFold(key, "operation") {
			var skipped json.RawMessage
			if err := dec.Decode(&skipped); err != nil {
				return "", errors.New("it is not valid JSON")
			}
			continue
		}
		if found || key != "operation" {
			return "", errors.New("it has more than one operation")
		}
		found = true
		if err := dec.Decode(&operation); err != nil {
			return "", errors.New("its operation is not a text")
		}
	}
	if _, err := dec.Token(); err != nil {
		return "", errors.New("it is not valid JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("it has data after the object")
	}
	return operation, nil
}

// lfsDenial is a denial that git-lfs shows.
func lfsDenial(status int, format string, args ...any) *Denial {
	d := deny(status, format, args...)
	d.Answer = func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/vnd.git-lfs+json")
		w.WriteHeader(d.Status)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": "bottle: " + d.Reason}) // the client may have gone
	}
	return d
}
