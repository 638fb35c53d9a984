package inject

import (
	"bytes"
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
	pairs []pair
	found func(name string)
	buf   []byte
	sent  int // leading bytes of buf that were returned already
}

// keyLength is how much of a string is searched for before the rest is compared:
// bytes.Index is much faster for short strings.
const keyLength = 16

// next returns the first pair in data, and the longest if several begin there.
func (r *replacer) next(data []byte) (found pair, at int) {
	at = -1
	for _, p := range r.pairs {
		limit := len(data)
		if at >= 0 {
			limit = min(limit, at+len(p.from))
		}
		i := index(data[:limit], p.from)
		if i >= 0 && (at < 0 || i < at || i == at && len(p.from) > len(found.from)) {
			found, at = p, i
		}
	}
	return found, at
}

func index(data []byte, s string) int {
	key := []byte(s[:min(len(s), keyLength)])
	for from := 0; ; from++ {
		i := bytes.Index(data[from:], key)
		if i < 0 {
			return -1
		}
		from += i
		if len(data)-from < len(s) {
			return -1
		}
		if string(data[from:from+len(s)]) == s {
			return from
		}
	}
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
	begin, safe := r.partial(done)
	if safe > sent {
		dst = append(dst, r.buf[sent:safe]...)
	}
	r.buf = append(r.buf[:0], r.buf[begin:]...)
	r.sent = max(safe, sent) - begin
	return dst
}

// partial returns where the first beginning of a string to replace is at the end of
// the buffer, and up to where bytes are the same whether it continues or not.
func (r *replacer) partial(done int) (begin, safe int) {
	begin, safe = len(r.buf), len(r.buf)
	for _, p := range r.pairs {
		for at := max(done, len(r.buf)-len(p.from)+1); at < len(r.buf); at++ {
			i := bytes.IndexByte(r.buf[at:], p.from[0])
			if i < 0 {
				break
			}
			at += i
			if beginsWith(p.from, r.buf[at:]) {
				begin, safe = min(begin, at), min(safe, at+p.common)
			}
		}
	}
	return begin, safe
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
	longest := 0
	for _, p := range r.pairs {
		longest = max(longest, len(p.from))
	}
	for at := max(done, len(r.buf)-longest); at < len(r.buf); at++ {
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
	if !slices.ContainsFunc(pairs, func(p pair) bool { return strings.Contains(s, p.from) }) {
		return s
	}
	r := replacer{pairs: pairs, found: found}
	var out []byte
	data := []byte(s)
	for {
		p, at := r.next(data)
		if at < 0 {
			return string(append(out, data...))
		}
		out = append(append(out, data[:at]...), p.to...)
		data = data[at+len(p.from):]
		found(p.name)
	}
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

func newReplacingReader(src io.Reader, pairs []pair, found func(string)) *replacingReader {
	return &replacingReader{src: src, r: replacer{pairs: pairs, found: found}}
}

func (r *replacingReader) Read(p []byte) (int, error) {
	for len(r.out) == 0 && len(p) > 0 {
		if r.err != nil {
			return 0, r.err
		}
		var n int
		n, r.err = r.src.Read(p)
		// What is held back when a stream breaks is dropped: it is incomplete anyway.
		r.acc = r.r.push(r.acc[:0], p[:n], r.err == io.EOF) //nolint:errorlint // io.Reader returns io.EOF itself
		r.out = r.acc
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}
