package setup

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/hint"
)

// maxRelease bounds a release file, in bytes; runsc has 100 MB.
const maxRelease = 1 << 30

// Files provides release files by name.
type Files interface {
	// Names are the files that are known to be there; nil: it cannot list them.
	Names() []string
	// Open opens a file. The error wraps fs.ErrNotExist if there is none of this name.
	Open(ctx context.Context, name string) (io.ReadCloser, error)
	// String names the source to the user.
	String() string
}

// Open returns the source that a user has written: an address that starts with https:// or
// http://, of a directory, or else a directory of this host, which open and readDir read.
func Open(written string, readDir func(string) ([]fs.DirEntry, error), open func(string) (*os.File, error)) (Files, error) {
	if strings.Contains(written, "://") {
		u, err := url.Parse(written)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, &hint.Error{Err: fmt.Errorf("invalid address %q", written), Hint: "https://HOST/DIRECTORY, or a directory of this host"}
		}
		return remote{u}, nil
	}
	entries, err := readDir(written)
	if err != nil {
		return nil, fmt.Errorf("read release files: %w", err)
	}
	d := directory{path: written, open: open}
	for _, e := range entries {
		d.names = append(d.names, e.Name())
	}
	return d, nil
}

type directory struct {
	path  string
	names []string
	open  func(string) (*os.File, error)
}

func (d directory) Names() []string { return d.names }
func (d directory) String() string  { return d.path }

func (d directory) Open(_ context.Context, name string) (io.ReadCloser, error) {
	return d.open(filepath.Join(d.path, name))
}

// remote is a directory of a web server. Proxies are those of the environment.
type remote struct{ base *url.URL }

func (remote) Names() []string { return nil }

func (r remote) String() string { return r.base.Redacted() }

// responseTimeout bounds the wait for a server's answer, not the transfer.
const responseTimeout = time.Minute

var client = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: responseTimeout}}

func (r remote) Open(ctx context.Context, name string) (io.ReadCloser, error) {
	u := *r.base
	u.Path = path.Join("/", u.Path, name)
	u.RawPath = ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", name, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	_ = resp.Body.Close() // nothing was read
	err = fmt.Errorf("fetch %s: %s answers %s", name, r, resp.Status)
	if resp.StatusCode == http.StatusNotFound {
		err = fmt.Errorf("%w: %w", err, fs.ErrNotExist)
	}
	return nil, err
}

// fetched is a release file in a scratch directory, whose digest was verified.
type fetched struct {
	Name   string
	Origin string
	path   string
	sha256 string
}

// choice is a file that will be fetched, with the digest that it must have.
type choice struct {
	release release
	name    string
	digest  string
	pinned  string
}

// choose selects the file of a release: among the user's checksums, and else the pinned one.
func choose(r release, arch string, sums Checksums) (choice, error) {
	glob := r.glob(arch)
	var found []string
	for name := range sums {
		if matches(glob, name) {
			found = append(found, name)
		}
	}
	switch len(found) {
	case 1:
		return choice{release: r, name: found[0], digest: sums[found[0]]}, nil
	case 0:
	default:
		return choice{}, &hint.Error{Err: fmt.Errorf("the checksums name %d files %s", len(found), glob), Hint: "keep the checksum of one version"}
	}
	for _, p := range pins {
		if p.arch == arch && matches(glob, p.name) {
			return choice{release: r, name: p.name, digest: p.digest, pinned: p.version}, nil
		}
	}
	return choice{}, &hint.Error{Err: fmt.Errorf("no checksum of %s", glob), Hint: "--checksums FILE"}
}

// fetch copies a file to dir and verifies it. What is installed later is that copy, so a
// change of the source after the verification has no effect.
func (cfg Config) fetch(ctx context.Context, sources []Files, c choice, dir string) (fetched, error) {
	for _, s := range sources {
		in, err := s.Open(ctx, c.name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fetched{}, err
		}
		out := fetched{Name: c.name, Origin: s.String(), path: filepath.Join(dir, c.name)}
		out.sha256, err = copyVerified(&counted{in, cfg, c.name, 0}, out.path, c)
		return out, errors.Join(err, in.Close())
	}
	return fetched{}, missingFile(sources, c)
}

// counted reports how much was read.
type counted struct {
	io.Reader
	cfg  Config
	name string
	n    int64
}

func (r *counted) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	r.n += int64(n)
	if r.cfg.Copied != nil {
		r.cfg.Copied(r.name, r.n)
	}
	return n, err
}

func missingFile(sources []Files, c choice) error {
	var where []string
	for _, s := range sources {
		where = append(where, s.String())
	}
	advice := "name a directory that has it with --from"
	if c.pinned != "" {
		advice = fmt.Sprintf("put version %s there, or another version with its checksum in a file: --checksums FILE", c.pinned)
	}
	return &hint.Error{Err: fmt.Errorf("missing release file %s in %s", c.name, strings.Join(where, ", ")), Hint: advice}
}

// copyVerified returns the copy's SHA-256.
func copyVerified(in io.Reader, to string, c choice) (string, error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	want, own := newHash(c.digest), sha256.New()
	n, err := io.Copy(io.MultiWriter(f, want, own), io.LimitReader(in, maxRelease+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("fetch %s: %w", c.name, err)
	}
	if n > maxRelease {
		return "", fmt.Errorf("%s is larger than %d bytes", c.name, maxRelease)
	}
	if got := sum(want); got != c.digest {
		advice := "the file is damaged or was replaced: get it again"
		if c.pinned != "" {
			advice = fmt.Sprintf("it is not the pinned version %s; for another version, name a file with its checksum: --checksums FILE", c.pinned)
		}
		return "", &hint.Error{Err: fmt.Errorf("wrong checksum of %s: %s, expected %s", c.name, got, c.digest), Hint: advice}
	}
	return sum(own), nil
}
