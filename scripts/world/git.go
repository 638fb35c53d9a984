package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// startGit serves the repositories in DIR/repos with git's own server. Anyone may
// clone and push.
func (w *world) startGit() error {
	if !w.git {
		return nil
	}
	repos := filepath.Join(w.state, "repos")
	if err := createRepository(repos, "demo.git"); err != nil {
		return err
	}
	backend, err := gitBackend(repos)
	if err != nil {
		return err
	}
	backend.Stderr = w.stderr.Writer()
	for _, s := range gitSites {
		if err := w.serveHTTP(netip.AddrPortFrom(s.addr, 443), true, "git", withAuth(withLength(backend))); err != nil {
			return err
		}
	}
	return nil
}

func gitBackend(repos string) (*cgi.Handler, error) {
	dir, err := git("", "--exec-path")
	if err != nil {
		return nil, err
	}
	root, err := filepath.Abs(repos)
	if err != nil {
		return nil, fmt.Errorf("find the repositories' directory: %w", err)
	}
	return &cgi.Handler{
		Path: filepath.Join(dir, "git-http-backend"),
		Dir:  root,
		Env:  append(gitEnv(), "GIT_PROJECT_ROOT="+root, "GIT_HTTP_EXPORT_ALL=1"),
	}, nil
}

// withLength adds the content length to chunked requests. CGI requires it (RFC
// 3875, 4.1.2), and git sends requests larger than 1 MiB in chunks.
func withLength(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.ContentLength >= 0 {
			next.ServeHTTP(rw, r)
			return
		}
		body, length, err := spool(r.Body)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusInternalServerError)
			return
		}
		defer func() { _ = body.Close() }()
		buffered := r.Clone(r.Context())
		buffered.Body, buffered.ContentLength, buffered.TransferEncoding = body, length, nil
		next.ServeHTTP(rw, buffered)
	})
}

// spool copies the body to an unlinked temporary file.
func spool(body io.Reader) (f *os.File, length int64, err error) {
	f, err = os.CreateTemp("", "world-body-")
	if err != nil {
		return nil, 0, fmt.Errorf("spool the request's body: %w", err)
	}
	length, err = io.Copy(f, body)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err := errors.Join(err, os.Remove(f.Name())); err != nil {
		return nil, 0, errors.Join(fmt.Errorf("spool the request's body: %w", err), f.Close())
	}
	return f, length, nil
}

// createRepository creates a bare repository with a fixed history if it does not
// exist.
func createRepository(repos, name string) error {
	bare := filepath.Join(repos, name)
	if _, err := os.Stat(bare); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(repos, 0o755); err != nil {
		return fmt.Errorf("create the repositories' directory: %w", err)
	}
	temp, err := os.MkdirTemp(repos, ".new-")
	if err != nil {
		return fmt.Errorf("create repository %s: %w", name, err)
	}
	err = fillRepository(temp, bare)
	return errors.Join(err, os.RemoveAll(temp))
}

func fillRepository(temp, bare string) error {
	work, newBare := filepath.Join(temp, "work"), filepath.Join(temp, "bare")
	if _, err := git("", "init", "--quiet", "--initial-branch=main", work); err != nil {
		return err
	}
	for _, c := range demoCommits() {
		if err := c.create(work); err != nil {
			return err
		}
	}
	for _, args := range [][]string{
		{"tag", "v1"},
		{"clone", "--quiet", "--bare", "--no-local", work, newBare},
		{"-C", newBare, "remote", "remove", "origin"},
		{"-C", newBare, "config", "http.receivepack", "true"},
	} {
		if _, err := git(work, args...); err != nil {
			return err
		}
	}
	return os.Rename(newBare, bare)
}

type commit struct{ message, file, content string }

func demoCommits() []commit {
	return []commit{
		{"Begin", "README.md", "# demo\n\nA repository to clone.\n"},
		{"Greet", "hello.sh", "#!/bin/sh\necho hello from the demo repository\n"},
		// Large enough that a clone takes more than one read.
		{"Add numbers", "data/numbers.txt", numbers(50_000)},
	}
}

func numbers(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%d\n", i*i)
	}
	return b.String()
}

func (c commit) create(work string) error {
	path := filepath.Join(work, c.file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create %s: %w", c.file, err)
	}
	if err := os.WriteFile(path, []byte(c.content), 0o644); err != nil {
		return fmt.Errorf("create %s: %w", c.file, err)
	}
	if _, err := git(work, "add", c.file); err != nil {
		return err
	}
	_, err := git(work, "commit", "--quiet", "--message", c.message)
	return err
}

// gitEnv is an environment in which git ignores the configuration of the machine
// and the caller, and commits are reproducible.
func gitEnv() []string {
	const name, email, date = "A Person", "person@example.test", "2001-02-03T04:05:06Z"
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=" + name, "GIT_AUTHOR_EMAIL=" + email, "GIT_AUTHOR_DATE=" + date,
		"GIT_COMMITTER_NAME=" + name, "GIT_COMMITTER_EMAIL=" + email, "GIT_COMMITTER_DATE=" + date,
	}
}

// git runs git in the directory and returns its trimmed output.
func git(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir, cmd.Env = dir, gitEnv()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return strings.TrimSpace(string(out)), nil
}
