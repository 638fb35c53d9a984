package inject

import (
	"compress/gzip"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// echoes replaces values in one response.
type echoes struct {
	*matcher // nil: there are none
	report   func(secrets []string, where string)

	mu       sync.Mutex
	reported []string
}

// newEchoes returns those for the values of a table, and more of a request.
func newEchoes(t *table, more []pair, report func([]string, string)) *echoes {
	x := &echoes{matcher: t.echo, report: report}
	if len(more) > 0 {
		x.matcher = newMatcher(append(slices.Clone(more), t.echo.pairs...))
	}
	return x
}

// found reports a secret once for each part of a response.
func (x *echoes) found(where string) func(name string) {
	return func(name string) {
		x.mu.Lock()
		known := slices.Contains(x.reported, name+" "+where)
		x.reported = append(x.reported, name+" "+where)
		x.mu.Unlock()
		if !known {
			x.report([]string{name}, where)
		}
	}
}

func (x *echoes) header(h http.Header, part string) {
	if x.matcher == nil {
		return
	}
	for name, values := range h {
		for i, v := range values {
			if contains(v, x.pairs) {
				values[i] = replaceAll(v, x.pairs, x.found(part+" "+name))
			}
		}
		// A name cannot be corrected, and no server has a reason for one.
		if contains(name, x.pairs) {
			delete(h, name)
		}
	}
}

// response replaces values in a response while it is read.
func (x *echoes) response(res *http.Response) error {
	if x.matcher == nil {
		return nil
	}
	x.header(res.Header, "header")
	if res.StatusCode == http.StatusSwitchingProtocols {
		x.upgraded(res)
		return nil
	}
	if !hasBody(res) {
		return nil
	}
	body := res.Body
	var src io.Reader = body
	decode, err := decodes(res)
	if err != nil {
		return err
	}
	if decode {
		src = &gzipReader{src: body}
		res.Header.Del("Content-Encoding")
	}
	// The length of a body may change unless all replacements have that of the value.
	if decode || !x.sameLength {
		res.Header.Del("Content-Length")
		res.ContentLength = -1
	}
	res.Body = &echoBody{Reader: newReplacingReader(src, x.matcher, x.found("body")), body: body, end: func() {
		x.header(res.Trailer, "trailer")
	}}
	return nil
}

func hasBody(res *http.Response) bool {
	return res.Request.Method != http.MethodHead && res.StatusCode != http.StatusNoContent && res.StatusCode != http.StatusNotModified
}

// decodes reports whether a body has to be decoded: what the client asked for, and would
// decode itself, and all text. Other types may be encoded without being asked for: some
// servers describe an archive as an encoding.
func decodes(res *http.Response) (bool, error) {
	encoding := strings.ToLower(strings.Join(res.Header.Values("Content-Encoding"), ","))
	requested := encoding == "gzip" && res.Request.Header.Get("Accept-Encoding") == "gzip"
	if encoding == "" || encoding == "identity" || !requested && !isText(res.Header.Get("Content-Type")) {
		return false, nil
	}
	if encoding != "gzip" || res.StatusCode == http.StatusPartialContent {
		return false, fmt.Errorf("upstream sent a content encoding that was not requested: %q", encoding)
	}
	return true, nil
}

func isText(contentType string) bool {
	base, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return true
	}
	if strings.HasPrefix(base, "text/") || strings.HasPrefix(base, "multipart/") {
		return true
	}
	for _, word := range []string{"json", "xml", "javascript", "yaml", "form-urlencoded", "graphql", "html"} {
		if strings.Contains(base, word) {
			return true
		}
	}
	return false
}

// echoBody is a body in which values are replaced.
type echoBody struct {
	io.Reader
	body io.Closer
	end  func()
}

// Close ends the body, after which its trailers are complete.
func (b *echoBody) Close() error {
	err := b.body.Close()
	b.end()
	return err
}

// gzipReader decodes when it is first read: the header of the body may come later than
// that of the response.
type gzipReader struct {
	src io.Reader
	gz  *gzip.Reader
}

func (g *gzipReader) Read(p []byte) (int, error) {
	if g.gz == nil {
		gz, err := gzip.NewReader(g.src)
		if err != nil {
			return 0, err // io.EOF if the body is empty
		}
		g.gz = gz
	}
	return g.gz.Read(p)
}

// upgraded replaces values in the data of another protocol, which may count bytes.
func (x *echoes) upgraded(res *http.Response) {
	conn, ok := res.Body.(io.ReadWriteCloser)
	if !ok {
		return // ReverseProxy refuses it
	}
	if m := newMatcher(sameLength(x.pairs)); m != nil {
		res.Body = &echoConn{ReadWriteCloser: conn, r: newReplacingReader(conn, m, x.found("upgraded connection"))}
	}
}

type echoConn struct {
	io.ReadWriteCloser
	r *replacingReader
}

func (c *echoConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// CloseWrite passes on the end of the client's data.
func (c *echoConn) CloseWrite() error {
	if w, ok := c.ReadWriteCloser.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return http.ErrNotSupported
}
