package inject

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// insertion is the state of inserting secrets into one request.
type insertion struct {
	table  *table
	target string
	bodies chan struct{} // limits concurrent insertions into bodies
	used   []string      // names of secrets
	// echo are strings of the request that contain a value in an encoding of their own.
	echo []pair
}

// insert replaces placeholders in a request.
func (x *insertion) insert(r *http.Request) *refusal {
	if ref := x.url(r.URL); ref != nil {
		return ref
	}
	for name, values := range r.Header {
		for i, v := range values {
			changed, ref := x.header(name, v)
			if ref != nil {
				return ref
			}
			values[i] = changed
		}
	}
	return x.body(r)
}

func (x *insertion) use(name string) {
	if !slices.Contains(x.used, name) {
		x.used = append(x.used, name)
	}
}

// header returns a header's value with secrets inserted.
func (x *insertion) header(name, value string) (string, *refusal) {
	for _, e := range x.table.entries {
		changed, ref := x.headerSecret(e, name, value)
		if ref != nil {
			return "", ref
		}
		value = changed
	}
	return value, nil
}

func (x *insertion) headerSecret(e *entry, name, value string) (string, *refusal) {
	var changed string
	found := contains(value, e.header)
	if found {
		changed = replaceAll(value, e.header, func(string) {})
	} else {
		changed, found = x.basic(e, name, value)
	}
	where := "header " + name
	switch {
	case !found:
		return value, nil
	case !slices.Contains(e.targets, x.target):
		return "", misuse(e, where, "not for "+x.target)
	case !e.inHeader(name):
		return "", misuse(e, where, "not for header "+name)
	}
	x.use(e.Name)
	return changed, nil
}

// basic inserts a secret into Basic credentials (RFC 7617).
func (x *insertion) basic(e *entry, name, value string) (string, bool) {
	if name != "Authorization" {
		return value, false
	}
	scheme, credentials, ok := strings.Cut(value, " ")
	if !ok || !strings.EqualFold(scheme, "Basic") {
		return value, false
	}
	credentials = strings.TrimSpace(credentials)
	text, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(credentials, "="))
	if err != nil {
		return value, false
	}
	if !contains(string(text), e.header[:1]) {
		return value, false
	}
	inserted := replaceAll(string(text), e.header[:1], func(string) {})
	encoded := base64.StdEncoding.EncodeToString([]byte(inserted))
	x.echo = append(x.echo, newPair(e.Name, encoded, credentials))
	return scheme + " " + encoded, true
}

// url inserts secrets into the query.
func (x *insertion) url(u *url.URL) *refusal {
	for _, e := range x.table.entries {
		if contains(u.Path, e.header) || contains(u.EscapedPath(), e.header) {
			ref := misuse(e, "path", "not for paths of URLs")
			ref.hidePath = true
			return ref
		}
		switch {
		case !contains(u.RawQuery, e.header):
			continue
		case !slices.Contains(e.targets, x.target):
			return misuse(e, "query", "not for "+x.target)
		case !e.Query:
			return misuse(e, "query", "not for queries of URLs")
		}
		u.RawQuery = replaceAll(u.RawQuery, withValue(e.header, url.QueryEscape(e.Value.Reveal())), x.use)
	}
	return nil
}

// withValue returns pairs that all have the same replacement.
func withValue(ps []pair, to string) []pair {
	ps = slices.Clone(ps)
	for i := range ps {
		ps[i] = newPair(ps[i].name, ps[i].from, to)
	}
	return ps
}

// escapeBody escapes a value as the content type of a body requires.
func escapeBody(contentType, value string) string {
	switch {
	case strings.Contains(contentType, "json"):
		return jsonString(value, false)
	case strings.Contains(contentType, "x-www-form-urlencoded"):
		return url.QueryEscape(value)
	}
	return value
}

// body inserts secrets into a body, if there is one for the target that may be there.
func (x *insertion) body(r *http.Request) *refusal {
	var ps []pair
	for _, e := range x.table.entries {
		if e.Body && slices.Contains(e.targets, x.target) {
			ps = append(ps, withValue(e.body, escapeBody(r.Header.Get("Content-Type"), e.Value.Reveal()))...)
		}
	}
	if len(ps) == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	select {
	case x.bodies <- struct{}{}:
		defer func() { <-x.bodies }()
	case <-r.Context().Done():
		return &refusal{kind: KindRefused, status: http.StatusBadRequest, where: "body", reason: "the client has left"}
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, MaxBody+1))
	if err != nil {
		return &refusal{kind: KindRefused, status: http.StatusBadRequest, where: "body", reason: fmt.Sprintf("read request body: %v", err)}
	}
	if len(data) > MaxBody {
		return &refusal{
			kind: KindRefused, status: http.StatusRequestEntityTooLarge, where: "body",
			reason: fmt.Sprintf("request body is too large for a secret to be inserted (max %d bytes)", MaxBody),
		}
	}
	text := replaceAll(string(data), ps, x.use)
	r.Body = io.NopCloser(bytes.NewReader([]byte(text)))
	r.ContentLength = int64(len(text))
	r.TransferEncoding = nil
	if r.Header.Get("Content-Length") != "" {
		r.Header.Set("Content-Length", strconv.Itoa(len(text)))
	}
	return nil
}

// checkHost verifies that a request is for the host of its tunnel.
func checkHost(r *http.Request, host, port string) error {
	if r.Method == http.MethodConnect {
		return errors.New("CONNECT inside a tunnel")
	}
	name, p := r.Host, port // a client may leave the port out
	if strings.Contains(name, ":") {
		var err error
		if name, p, err = net.SplitHostPort(r.Host); err != nil {
			return fmt.Errorf("invalid Host %q", r.Host)
		}
	}
	if normalHost(name) != host || p != port {
		return fmt.Errorf("wrong Host %q: the tunnel's host is %s", r.Host, net.JoinHostPort(host, port))
	}
	return nil
}

// limitEncodings lets a server use only the encodings that responses can be decoded
// from. Parts of an encoded body cannot be decoded.
func limitEncodings(h http.Header) {
	values, ok := h["Accept-Encoding"]
	if !ok {
		return
	}
	gzip := false
	for _, part := range strings.Split(strings.Join(values, ","), ",") {
		name, q, _ := strings.Cut(strings.TrimSpace(part), ";")
		q = strings.ReplaceAll(q, " ", "")
		zero := strings.HasPrefix(q, "q=0") && strings.Trim(q[len("q=0"):], ".0") == ""
		gzip = gzip || strings.EqualFold(strings.TrimSpace(name), "gzip") && !zero
	}
	if gzip && h.Get("Range") == "" {
		h.Set("Accept-Encoding", "gzip")
		return
	}
	h.Set("Accept-Encoding", "identity")
}
