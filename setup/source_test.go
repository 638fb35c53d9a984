package setup

import (
	"archive/tar"
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/hint"
)

func TestParseChecksums(t *testing.T) {
	a, b := strings.Repeat("a", 64), strings.Repeat("B", 128)
	got, err := ParseChecksums("SUMS", []byte("# comment\n"+a+"  ./dir/one\n"+b+" *two\n\n"+a+"  one\n"))
	if err != nil || len(got) != 2 || got["one"] != a || got["two"] != strings.ToLower(b) {
		t.Errorf("got %v, %v", got, err)
	}
	for text, want := range map[string]string{
		"":                                      "contains no checksums",
		"abc  file\n":                           `SUMS:1: not a checksum: "abc  file"`,
		a + "\n":                                "SUMS:1: not a checksum",
		a + "  f\n" + b[:64] + "  x/f\n":        "SUMS:2: second checksum of f",
		"\n" + strings.Repeat("a", 100) + "  f": "SUMS:2: not a checksum",
	} {
		if got, err := ParseChecksums("SUMS", []byte(text)); err == nil || !strings.Contains(err.Error(), want) || hint.Of(err) == "" {
			t.Errorf("%q: %v, %v; want %q and a hint", text, got, err, want)
		}
	}
}

// The pins name every file that setup needs, for both architectures, and are those of the
// documentation.
func TestPins(t *testing.T) {
	doc := string(readFile(t, "../docs/install.md"))
	for _, r := range Releases("amd64") {
		if !strings.Contains(doc, "| "+r.Part+" | `"+r.Name+"` | "+r.Version+" |") {
			t.Errorf("docs/install.md does not name %s, version %s, of %s", r.Name, r.Version, r.Part)
		}
	}
	for _, arch := range []string{"amd64", "arm64"} {
		got := Releases(arch)
		if len(got) != len(releases) {
			t.Errorf("%s: %d pinned files, want %d: %+v", arch, len(got), len(releases), got)
		}
		for _, r := range got {
			if _, err := ParseChecksums("pin", []byte(r.Digest+"  "+r.Name)); err != nil {
				t.Error(err)
			}
		}
	}
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// makeTestBundle writes a bundle of a source.
func makeTestBundle(t *testing.T, s Files, sums Checksums) string {
	t.Helper()
	var b bytes.Buffer
	names, digest, err := MakeBundle(t.Context(), &b, Config{Arch: "amd64"}, []Files{s}, sums)
	if err != nil || len(names) != len(releases) || digest != sha256Of(b.Bytes()) {
		t.Fatalf("%q %s %v", names, digest, err)
	}
	path := filepath.Join(t.TempDir(), "bundle.tar")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBundle(t *testing.T) {
	s, sums := source(t, "1")
	path := makeTestBundle(t, s, sums)
	if data, other := readFile(t, path), readFile(t, makeTestBundle(t, s, sums)); !bytes.Equal(data, other) {
		t.Error("two bundles of the same files differ")
	}
	b, err := OpenBundle(open(t, path))
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	h.setUp(Request{Sources: []Files{b}, Checksums: b.Checksums})
	if got := h.read(programDir + "/runsc"); got != "runsc 1" {
		t.Errorf("runsc is %q", got)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A damaged bundle changes nothing.
func TestBadBundles(t *testing.T) {
	s, sums := source(t, "1")
	good := readFile(t, makeTestBundle(t, s, sums))
	damaged := bytes.Replace(good, []byte("runc 1"), []byte("runc 2"), 1)
	var link, empty bytes.Buffer
	w := tar.NewWriter(&link)
	if err := errors.Join(w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "runsc", Linkname: "/etc/passwd"}), w.Close(), tar.NewWriter(&empty).Close()); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"damaged":   {damaged, "wrong checksum of runc.amd64"},
		"truncated": {good[:600], "unexpected EOF"},
		"link":      {link.Bytes(), `unexpected entry "runsc"`},
		"empty":     {empty.Bytes(), "no SHA256SUMS"},
		"text":      {[]byte(strings.Repeat("not a tar archive\n", 100)), "invalid tar header"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bundle.tar")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			h := newHost(t)
			before := h.files()
			b, err := OpenBundle(open(t, path))
			var p *Plan
			if err == nil {
				p, err = Prepare(t.Context(), h.Config, Request{Sources: []Files{b}, Checksums: b.Checksums})
			}
			if err == nil {
				err = p.Apply(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			compare(t, before, h.files())
		})
	}
}

// Files come from directories and web servers, from the first that has each.
func TestURL(t *testing.T) {
	s, sums := source(t, "1")
	server := httptest.NewServer(http.StripPrefix("/v1", http.FileServer(http.Dir(s.String()))))
	defer server.Close()
	empty, err := Open(t.TempDir(), os.ReadDir, os.Open)
	if err != nil {
		t.Fatal(err)
	}
	remote, err := Open(server.URL+"/v1/", os.ReadDir, os.Open)
	if err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	h.setUp(Request{Sources: []Files{empty, remote}, Checksums: sums})
	if got := h.read(programDir + "/runsc"); got != "runsc 1" {
		t.Errorf("runsc is %q", got)
	}
	if _, err := Open("ftp://server/dir", os.ReadDir, os.Open); err == nil || hint.Of(err) == "" {
		t.Errorf("a URL of another kind: %v", err)
	}
	missing, err := Open(server.URL+"/v2", os.ReadDir, os.Open)
	if err != nil {
		t.Fatal(err)
	}
	h = newHost(t)
	before := h.files()
	p := h.prepare(Request{Sources: []Files{missing}, Checksums: sums})
	if err := p.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "missing release file gvisor-x86_64.tar.bz2 in "+server.URL+"/v2") {
		t.Errorf("got %v", err)
	}
	compare(t, before, h.files())
	server.Close()
	if err := p.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a server that is down: %v", err)
	}
}
