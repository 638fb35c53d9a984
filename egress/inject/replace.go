package inject

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"html"
	"io"
	"net/url"
	"slices"
	"strings"
)

// pair is a string to find and what replaces it.
type pair struct {
	from, to string
	name     string // of the secret
	common   int    // length of the prefix that from and to share
}

func newPair(name, from, to string) pair {
	n := 0
	for n < min(len(from), len(to)) && from[n] == to[n] {
		n++
	}
	return pair{from: from, to: to, name: name, common: n}
}

// urlForms returns the pairs for a value as it is and escaped for URLs and cookies.
func urlForms(name, from, to string) []pair {
	return distinct([]pair{
		newPair(name, from, to),
		newPair(name, url.QueryEscape(from), url.QueryEscape(to)),
		newPair(name, url.PathEscape(from), url.PathEscape(to)),
	})
}

// bodyForms returns the pairs for a value in a body.
func bodyForms(name, from, to string) []pair {
	ps := urlForms(name, from, to)
	for _, escapeHTML := range []bool{false, true} {
		ps = append(ps, newPair(name, jsonString(from, escapeHTML), jsonString(to, escapeHTML)))
	}
	slash := func(s string) string { return strings.ReplaceAll(jsonString(s, false), "/", `\/`) }
	return distinct(append(ps, newPair(name, slash(from), slash(to)), newPair(name, html.EscapeString(from), html.EscapeString(to))))
}

// echoForms returns the pairs for a value that a server may have encoded.
func echoForms(name, from, to string) []pair {
	ps := bodyForms(name, from, to)
	for offset := range 3 {
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			ps = append(ps, newPair(name, base64Core(enc, from, offset), base64Core(enc, to, offset)))
		}
	}
	f, t := hex.EncodeToString([]byte(from)), hex.EncodeToString([]byte(to))
	return distinct(append(ps, newPair(name, f, t), newPair(name, strings.ToUpper(f), strings.ToUpper(t))))
}

func distinct(ps []pair) []pair {
	var out []pair
	for _, p := range ps {
		if !slices.ContainsFunc(out, func(q pair) bool { return q.from == p.from }) {
			out = append(out, p)
		}
	}
	return out
}

func jsonString(s string, escapeHTML bool) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(escapeHTML)
	_ = e.Encode(s) // a string is always encoded
	return strings.Trim(strings.TrimSuffix(b.String(), "\n"), `"`)
}

// base64Core returns the characters that the base64 of any text has which contains s
// at an offset of 0, 1 or 2 modulo 3. Characters that also depend on neighbours
// are left out.
func base64Core(enc *base64.Encoding, s string, offset int) string {
	skip := []int{0, 2, 3}[offset]
	text := enc.EncodeToString([]byte("\x00\x00\x00"[:offset] + s))
	return text[skip : (offset+len(s))*8/6]
}

// sameLength returns the pairs that do not change the length of a text.
func sameLength(ps []pair) []pair {
	return slices.DeleteFunc(slices.Clone(ps), func(p pair) bool { return len(p.from) != len(p.to) })
}

// replacer replaces strings in a stream. Data is held back only while it may be the
// beginning of a string to replace, and not the part that its replacement shares.
type replacer struct {
	*matcher
	found func(name string)
	buf   []byte
	sent  int // leading bytes of buf that were returned already
}

// passes reports whether data can be returned as it is: nothing is held back, and nothing in
// it is replaced or has to be.
func (r *replacer) passes(data []byte) bool {
	if len(r.buf) > 0 {
		return false
	}
	if begin, _ := r.partial(data, 0); begin < len(data) {
		return false
	}
	_, at := r.next(data)
	return at < 0
}

// push appends to dst what can be returned after more data has arrived.
func (r *replacer) push(dst, data []byte, last bool) []byte {
	r.buf = append(r.buf, data...)
	done, sent := 0, r.sent
	for {
		p, i := r.next(r.buf[done:])
		if i < 0 {
			break
		}
		start := done + i
		if start > sent {
			dst = append(dst, r.buf[sent:start]...)
			sent = start
		}
		dst = append(dst, p.to[sent-start:]...) // what was sent of it is common
		done = start + len(p.from)
		sent = done
		r.found(p.name)
	}
	if last {
		dst = r.end(dst, done, sent)
		r.buf, r.sent = r.buf[:0], 0
		return dst
	}
	begin, safe := r.partial(r.buf, done)
	if safe > sent {
		dst = append(dst, r.buf[sent:safe]...)
	}
	r.buf = append(r.buf[:0], r.buf[begin:]...)
	r.sent = max(safe, sent) - begin
	return dst
}

func beginsWith(s string, prefix []byte) bool {
	return len(prefix) <= len(s) && s[:len(prefix)] == string(prefix)
}

// revealed is how many characters of a value may end a stream: fewer occur there by
// chance.
const revealed = 4

// end appends the rest. A value that the end of the stream cuts off is replaced too,
// or all but its last character could be read.
func (r *replacer) end(dst []byte, done, sent int) []byte {
	for at := max(done, len(r.buf)-r.longest); at < len(r.buf); at++ {
		rest := r.buf[at:]
		for _, p := range r.pairs {
			if len(rest)-p.common < revealed || !beginsWith(p.from, rest) {
				continue
			}
			if at > sent {
				dst = append(dst, r.buf[sent:at]...)
				sent = at
			}
			r.found(p.name)
			return append(dst, p.to[min(sent-at, len(p.to)):min(len(rest), len(p.to))]...)
		}
	}
	return append(dst, r.buf[sent:]...)
}

// replaceAll replaces in a complete string.
func replaceAll(s string, pairs []pair, found func(name string)) string {
	if !contains(s, pairs) {
		return s
	}
	var out strings.Builder
	for {
		at, longest := len(s), pair{}
		for _, p := range pairs {
			if i := strings.Index(s, p.from); i >= 0 && (i < at || i == at && len(p.from) > len(longest.from)) {
				at, longest = i, p
			}
		}
		out.WriteString(s[:at])
		if longest.from == "" {
			return out.String()
		}
		out.WriteString(longest.to)
		s = s[at+len(longest.from):]
		found(longest.name)
	}
}

func contains(s string, pairs []pair) bool {
	return slices.ContainsFunc(pairs, func(p pair) bool { return strings.Contains(s, p.from) })
}

// replacingReader replaces in what it reads from src. It returns data as soon as src
// does.
type replacingReader struct {
	src io.Reader
	r   replacer
	out []byte // not returned yet
	err error
	acc []byte // the storage of out
}

func newReplacingReader(src io.Reader, m *matcher, found func(string)) *replacingReader {
	return &replacingReader{src: src, r: replacer{matcher: m, found: found}}
}

func (r *replacingReader) Read(p []byte) (int, error) {
	for len(r.out) == 0 && len(p) > 0 {
		if r.err != nil {
			return 0, r.err
		}
		var n int
		n, r.err = r.src.Read(p)
		if n > 0 && r.r.passes(p[:n]) {
			return n, nil
		}
		// What is held back when a stream breaks is dropped: it is incomplete anyway.
		r.acc = r.r.push(r.acc[:0], p[:n], r.err == io.EOF) //nolint:errorlint // io.Reader returns io.EOF itself
		r.out = r.acc
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}
