package inject

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestAuthorityAgainstHostHeader sends what a client library would not: HTTP/2 requests
// with an :authority and a Host header that differ, and requests for a second host on
// the same connection.
func TestAuthorityAgainstHostHeader(t *testing.T) {
	u := &recorder{}
	w := newWorld(t, options{http2: true, handler: u.ServeHTTP})
	send := func(fields ...string) string {
		conn, _ := w.raw(protoHTTP2)
		if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
			t.Fatal(err)
		}
		f := http2.NewFramer(conn, conn)
		var block bytes.Buffer
		enc := hpack.NewEncoder(&block)
		for i := 0; i < len(fields); i += 2 {
			if err := enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.WriteSettings(); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true}); err != nil {
			t.Fatal(err)
		}
		f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return err.Error()
			}
			switch frame := frame.(type) {
			case *http2.MetaHeadersFrame:
				return frame.PseudoValue("status")
			case *http2.RSTStreamFrame:
				return "reset"
			}
		}
	}
	base := []string{":method", "GET", ":scheme", "https", ":path", "/", "x-api-key", w.placeholder}
	check(t, "control", send(append(base[:6:6], ":authority", apiHost, "x-api-key", w.placeholder)...), "200")
	check(t, "control: value sent", strings.Contains(u.text(), realValue), true)
	n := u.count()
	check(t, "other :authority", send(append(base[:6:6], ":authority", otherHost, "x-api-key", w.placeholder)...), "421")
	check(t, "other :authority, own Host", send(append(base[:6:6], ":authority", otherHost, "host", apiHost)...), "421")
	check(t, "only another Host", send(append(base[:6:6], "host", otherHost)...), "421")
	check(t, "requests after the control", u.count(), n)
	// The Host header is ignored where there is an :authority, and not sent on.
	if s := send(append(base[:6:6], ":authority", apiHost, "host", otherHost)...); s == "200" {
		check(t, "second Host sent on", strings.Contains(u.text(), otherHost), false)
	}
	for _, bad := range [][]string{
		append(base[:6:6], ":authority", apiHost, "x-a", "b\r\nHost: "+otherHost),
		append(base[:6:6], ":authority", apiHost, "transfer-encoding", "chunked"),
		append(base[:6:6], ":authority", apiHost, "connection", "upgrade"),
		append(base[:4:4], ":path", "/ HTTP/1.1\r\nHost: x", ":authority", apiHost),
		append(base[:6:6], ":authority", apiHost, ":authority", otherHost),
	} {
		if s := send(bad...); s == "200" {
			t.Errorf("accepted %q", bad)
		}
	}
}

// TestSmuggling sends requests whose end parsers disagree about. Never may a second
// request reach the upstream unchecked.
func TestSmuggling(t *testing.T) {
	inner := "GET /smuggled HTTP/1.1\r\nHost: " + otherHost + "\r\nX-Api-Key: PLACEHOLDER\r\n\r\n"
	post := "POST / HTTP/1.1\r\nHost: " + apiHost + "\r\n"
	chunked := "0\r\n\r\n" + inner
	for name, text := range map[string]string{
		"control":              post + "Content-Length: " + fmt.Sprint(len(chunked)) + "\r\n\r\n" + chunked,
		"CL.TE":                post + "Content-Length: " + fmt.Sprint(len(chunked)) + "\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
		"TE.TE":                post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked,
		"TE with tab":          post + "Content-Length: " + fmt.Sprint(len(chunked)) + "\r\nTransfer-Encoding:\tchunked\r\n\r\n" + chunked,
		"TE with space":        post + "Transfer-Encoding : chunked\r\n\r\n" + chunked,
		"TE unknown":           post + "Transfer-Encoding: xchunked\r\n\r\n" + chunked,
		"two CL":               post + "Content-Length: 0\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
		"CL list":              post + "Content-Length: 0, " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
		"CL with sign":         post + "Content-Length: +" + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
		"folded header":        post + "X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: " + fmt.Sprint(len(chunked)) + "\r\n\r\n" + chunked,
		"two Hosts":            post + "Host: " + otherHost + "\r\n\r\n",
		"Host with path":       "GET / HTTP/1.1\r\nHost: " + otherHost + "/" + apiHost + "\r\n\r\n",
		"absolute, other":      "GET https://" + otherHost + "/smuggled HTTP/1.1\r\nHost: " + apiHost + "\r\n\r\n",
		"absolute, other Host": "GET https://" + apiHost + "/absolute HTTP/1.1\r\nHost: " + otherHost + "\r\n\r\n",
		"CONNECT":              "CONNECT " + apiHost + ":443 HTTP/1.1\r\nHost: " + apiHost + ":443\r\n\r\n" + inner,
		"GET with body":        "GET / HTTP/1.1\r\nHost: " + apiHost + "\r\nContent-Length: " + fmt.Sprint(len(inner)) + "\r\n\r\n" + inner,
		"h2c upgrade":          "GET / HTTP/1.1\r\nHost: " + apiHost + "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n" + inner,
		"chunk extension":      post + "Transfer-Encoding: chunked\r\n\r\n0;a=\n\r\n\r\n" + inner,
	} {
		t.Run(name, func(t *testing.T) {
			u := &recorder{}
			var smuggled atomic.Bool
			w := newWorld(t, options{handler: func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/smuggled" || r.Host != apiHost {
					smuggled.Store(true)
				}
				u.ServeHTTP(w, r)
			}})
			conn, br := w.raw(protoHTTP1)
			if _, err := io.WriteString(conn, strings.ReplaceAll(text, "PLACEHOLDER", w.placeholder)); err != nil {
				t.Fatal(err)
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(br)
			if err != nil && len(got) == 0 {
				t.Fatal(err)
			}
			check(t, "smuggled", smuggled.Load(), false)
			check(t, "value sent", strings.Contains(u.text(), realValue), false)
			if name == "control" {
				check(t, "the body contains the request", strings.Contains(u.text(), "/smuggled"), true)
			}
		})
	}
	t.Run("control of the method", func(t *testing.T) {
		u := &recorder{}
		w := newWorld(t, options{handler: u.ServeHTTP})
		conn, br := w.raw(protoHTTP1)
		text := post + "Content-Length: 0\r\n\r\n" + "GET /smuggled HTTP/1.1\r\nHost: " + apiHost + "\r\nX-Api-Key: " + w.placeholder + "\r\n\r\n"
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(br); err != nil {
			t.Fatal(err)
		}
		check(t, "pipelined request with the value", strings.Contains(u.text(), realValue), true)
	})
}

// TestUpgradeToUncheckedHTTP asks for protocols in which requests would not be checked.
// In the control, the upgrade is to a websocket.
func TestUpgradeToUncheckedHTTP(t *testing.T) {
	for upgrade, want := range map[string]string{
		"websocket": "websocket", "h2c": "", "H2C": "", "TLS/1.2, HTTP/1.1": "", "websocket, h2c": "", "HTTP/2.0": "", "SPDY/3.1": "SPDY/3.1",
	} {
		got := "none"
		w := newWorld(t, options{handler: func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Upgrade") }})
		r := w.request(http.MethodGet, "/", nil)
		r.Header.Set("Connection", "Upgrade")
		r.Header.Set("Upgrade", upgrade)
		w.do(w.client(false), r)
		check(t, upgrade, got, want)
	}
}
