package setup

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// Checksums are the digests of files by their names: SHA-256 or SHA-512 in hexadecimal
// digits.
type Checksums map[string]string

// checksumLine is a line as sha256sum(1) and sha512sum(1) print it.
var checksumLine = lazyregexp.New(`^([0-9a-fA-F]{64}|[0-9a-fA-F]{128})[ \t]+\*?(.+)$`)

// ParseChecksums parses the output of sha256sum or sha512sum. Directories in names are
// ignored. from names the file in errors.
func ParseChecksums(from string, text []byte) (Checksums, error) {
	out := Checksums{}
	var problems hint.Problems
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := checksumLine().FindStringSubmatch(line)
		if m == nil {
			problems.Add(&hint.Error{Err: fmt.Errorf("%s:%d: not a checksum: %q", from, i+1, line), Hint: "write lines as sha256sum or sha512sum does: DIGEST  FILE"})
			continue
		}
		name, digest := path.Base(m[2]), strings.ToLower(m[1])
		if old, ok := out[name]; ok && old != digest {
			problems.Add(&hint.Error{Err: fmt.Errorf("%s:%d: second checksum of %s", from, i+1, name), Hint: "remove one of the two"})
			continue
		}
		out[name] = digest
	}
	if err := problems.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, &hint.Error{Err: fmt.Errorf("%s contains no checksums", from), Hint: "write lines as sha256sum or sha512sum does: DIGEST  FILE"}
	}
	return out, nil
}

// String formats the checksums as sha256sum does, sorted by name.
func (c Checksums) String() string {
	var b bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&b, "%s  %s\n", c[name], name)
	}
	return b.String()
}

// newHash returns the hash whose digests have the length of digest.
func newHash(digest string) hash.Hash {
	if len(digest) == sha512.Size*2 {
		return sha512.New()
	}
	return sha256.New()
}

func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

func sha256Of(data []byte) string {
	h := sha256.Sum256(data)
	return hex.EncodeToString(h[:])
}

// matches is path.Match for a valid pattern.
func matches(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return ok && err == nil
}
