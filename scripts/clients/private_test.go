package clients

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// private is a server of which every path needs one of its keys.
type private struct {
	next http.Handler
	keys map[string]string // names by hash, so that a search does not find the values here

	mu   sync.Mutex
	used map[string]int // requests by the key's name
}

// servePrivate serves packages, a container registry and a git repository at packages.test to
// requests with one of the values, until the test ends.
func servePrivate(t *testing.T, values map[string]string) *private {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("/", packages(t, "https://packages.test"))
	mux.Handle("/git/", gitServer(t))
	addRegistry(mux)
	mux.Handle("/git/demo.git/info/lfs/", http.StripPrefix("/git/demo.git/info/lfs", &lfsServer{}))
	p := &private{next: mux, keys: map[string]string{}, used: map[string]int{}}
	for name, value := range values {
		p.keys[hashOf(value)] = name
	}
	listen(t, "198.51.101.18:443", p, &tls.Config{Certificates: []tls.Certificate{certificate(t, "packages.test")}})
	return p
}

// accepted returns how many requests have had a key.
func (p *private) accepted(name string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used[name]
}

func (p *private) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, credential, ok := r.BasicAuth()
	if !ok {
		_, credential, _ = strings.Cut(r.Header.Get("Authorization"), " ")
	}
	name, ok := p.keys[hashOf(credential)]
	if !ok {
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		http.Error(w, "wrong credential", http.StatusUnauthorized)
		return
	}
	p.mu.Lock()
	p.used[name]++
	p.mu.Unlock()
	p.next.ServeHTTP(w, r)
}

// gitServer serves the repository /git/demo.git.
func gitServer(t *testing.T) http.Handler {
	t.Helper()
	root := t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b.test", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b.test"}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	repo := filepath.Join(root, "demo.git")
	git("init", "--quiet", "--bare", "--initial-branch=main", repo)
	tree := git("-C", repo, "hash-object", "-w", "-t", "tree", "/dev/null")
	git("-C", repo, "update-ref", "refs/heads/main", git("-C", repo, "commit-tree", "-m", "begin", tree))
	git("-C", repo, "config", "http.receivepack", "true")
	backend := &cgi.Handler{
		Path: filepath.Join(git("--exec-path"), "git-http-backend"), Root: "/git", Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root, "GIT_CONFIG_NOSYSTEM=1"},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// CGI needs a length (RFC 3875, section 4.1.2).
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client has gone
		}
		r.Header.Del("Authorization") // a program's environment
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
		backend.ServeHTTP(w, r)
	})
}

// lfsServer stores files with the batch API and basic transfers of Git LFS
// (https://github.com/git-lfs/git-lfs/blob/main/docs/api).
type lfsServer struct{ objects sync.Map } // of []byte, by ID

func (s *lfsServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, isObject := strings.CutPrefix(r.URL.Path, "/objects/")
	switch {
	case r.URL.Path == "/objects/batch":
		s.batch(w, r)
	case isObject && r.Method == http.MethodPut:
		data, err := io.ReadAll(r.Body)
		if err != nil || hashOf(string(data)) != id {
			http.Error(w, "wrong content", http.StatusBadRequest)
			return
		}
		s.objects.Store(id, data)
	case isObject && r.Method == http.MethodGet:
		data, ok := s.objects.Load(id)
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data.([]byte)) // an error is the client's end of the connection
	default:
		http.NotFound(w, r)
	}
}

type (
	lfsAction struct {
		Href   string            `json:"href"`
		Header map[string]string `json:"header"`
	}
	lfsObject struct {
		ID      string               `json:"oid"`
		Size    int64                `json:"size"`
		Actions map[string]lfsAction `json:"actions,omitempty"`
	}
)

func (s *lfsServer) batch(w http.ResponseWriter, r *http.Request) {
	var batch struct {
		Operation string      `json:"operation"`
		Objects   []lfsObject `json:"objects"`
	}
	if err := json.NewDecoder(r.Body).Decode(&batch); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for i, o := range batch.Objects {
		batch.Objects[i].Actions = map[string]lfsAction{batch.Operation: {
			Href:   "https://packages.test/git/demo.git/info/lfs/objects/" + o.ID,
			Header: map[string]string{"Authorization": r.Header.Get("Authorization")},
		}}
	}
	w.Header().Set("Content-Type", "application/vnd.git-lfs+json")
	_ = json.NewEncoder(w).Encode(map[string]any{"transfer": "basic", "objects": batch.Objects}) // as above
}

// addRegistry serves an image's manifest (https://github.com/opencontainers/distribution-spec).
func addRegistry(mux *http.ServeMux) {
	manifest := fmt.Sprintf(`{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "annotations": {"says": %q},
"config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": "sha256:%s"}, "layers": []}`, says, hashOf("{}"))
	mux.HandleFunc("/v2/{$}", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/v2/demo/manifests/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", "sha256:"+hashOf(manifest))
		_, _ = io.WriteString(w, manifest) // as above
	})
}
