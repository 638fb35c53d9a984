package inject

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/bot-bottle/bottle/internal/secret"
)

// TestCoalescing: a client that uses one HTTP/2 connection for two hosts with secrets, as
// browsers do if a certificate is valid for both, gets neither secret to the wrong host.
func TestCoalescing(t *testing.T) {
	api, other := &recorder{}, &recorder{}
	value := "ghp_" + fill(36, base62)
	w := newWorld(t, options{
		http2: true, handler: api.ServeHTTP, other: other.ServeHTTP,
		more: []Secret{{Name: "GH", Value: secret.New(value), Placeholder: Placeholder(value), Hosts: []string{otherHost}}},
	})
	send := func(host string) int {
		r := w.request(http.MethodGet, "/", nil)
		r.Host = host
		r.Header.Set("Authorization", "Bearer "+w.placeholder)
		res, body := w.do(w.client(true), r)
		w.checkClean(res, body)
		return res.StatusCode
	}
	check(t, "the other host", send(otherHost), http.StatusMisdirectedRequest)
	check(t, "requests at either", api.count()+other.count(), 0)
	check(t, "control", send(apiHost), http.StatusOK)
	check(t, "control: value sent", strings.Contains(api.text(), realValue), true)
	check(t, "requests at the other", other.count(), 0)
}

// literal encodes a header field without Huffman coding (RFC 7541, section 6.2): prefix 0
// is without indexing, 0x10 never indexed, 0x40 with indexing.
func literal(prefix byte, name, value string) []byte {
	out := append([]byte{prefix, byte(len(name))}, name...)
	return append(append(append(out, byte(0x7f)), hpack7(len(value)-0x7f)...), value...)
}

// hpack7 continues an integer that does not fit its prefix (RFC 7541, section 5.1).
func hpack7(n int) []byte {
	var out []byte
	for ; n >= 0x80; n >>= 7 {
		out = append(out, byte(n)|0x80)
	}
	return append(out, byte(n))
}

// TestHPACK: however a placeholder is encoded, it is found where it may not be. In the
// controls, the same encoding is accepted where it may be.
func TestHPACK(t *testing.T) {
	u := &recorder{}
	w := newWorld(t, options{http2: true, handler: u.ServeHTTP})
	padded := w.placeholder + strings.Repeat("x", 0x80) // so that its length needs two bytes
	huffman := func(name string) []byte {
		var b bytes.Buffer
		if err := hpack.NewEncoder(&b).WriteField(hpack.HeaderField{Name: name, Value: padded}); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	indexed := []byte{0x80 | 62} // the newest entry of the dynamic table
	for name, encode := range map[string]func(header string) [][]byte{
		"Huffman":          func(h string) [][]byte { return [][]byte{huffman(h)} },
		"without indexing": func(h string) [][]byte { return [][]byte{literal(0, h, padded)} },
		"never indexed":    func(h string) [][]byte { return [][]byte{literal(0x10, h, padded)} },
		// The second request refers to a field of the first.
		"dynamic table": func(h string) [][]byte { return [][]byte{literal(0x40, h, padded), indexed} },
		// The same, after the table was emptied and refilled.
		"table size": func(h string) [][]byte {
			return [][]byte{append([]byte{0x20, 0x3f, 0xe1, 0x1f}, literal(0x40, h, padded)...), indexed}
		},
	} {
		for _, split := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/continued=%v", name, split), func(t *testing.T) {
				before := u.count()
				for _, status := range w.sendBlocks(encode("user-agent"), split) {
					check(t, "where it may not be", status, "403")
				}
				check(t, "requests", u.count(), before)
				for _, status := range w.sendBlocks(encode("x-api-key"), split) {
					check(t, "control", status, "200")
				}
			})
		}
	}
	if !strings.Contains(u.text(), realValue) {
		t.Error("control: no value was sent")
	}
}

// sendBlocks sends a request for each block of header fields on one connection, and
// returns their status. A size update has to come first in a block.
func (w *world) sendBlocks(blocks [][]byte, split bool) (statuses []string) {
	w.t.Helper()
	conn, _ := w.raw(protoHTTP2)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		w.t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	err := f.WriteSettings()
	for i, block := range blocks {
		// GET, https and / are in the static table. :authority is first, so that the block's
		// field is the newest.
		var update []byte
		if block[0]&0xe0 == 0x20 {
			update, block = block[:4], block[4:]
		}
		full := append(append(bytes.Clone(update), 0x82, 0x87, 0x84, 0x01, byte(len(apiHost))), apiHost...)
		full = append(full, block...)
		id, first := uint32(2*i+1), full
		if split {
			first = full[:len(full)-len(block)/2-1]
		}
		err = errors.Join(err, f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: true, EndHeaders: !split}))
		if split {
			err = errors.Join(err, f.WriteContinuation(id, true, full[len(first):]))
		}
		if err != nil {
			w.t.Fatal(err)
		}
		for len(statuses) == i {
			frame, err := f.ReadFrame()
			if err != nil {
				w.t.Fatal(err)
			}
			if h, ok := frame.(*http2.MetaHeadersFrame); ok {
				statuses = append(statuses, h.PseudoValue("status"))
			}
		}
	}
	return statuses
}

// TestResponseSplitting: a server that can be made to send a second response within one
// gives the agent no value with it. In the control, both are read from the server.
func TestResponseSplitting(t *testing.T) {
	const second = "HTTP/1.1 200 OK\r\nX-Echo: " + realValue + "\r\nContent-Length: 4\r\n\r\nevil"
	handler := func(rw http.ResponseWriter, _ *http.Request) {
		conn, buf, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		_, _ = buf.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" + second)
		_ = buf.Flush()
		_ = conn.Close()
	}
	w := newWorld(t, options{handler: handler})
	conn, br := w.raw(protoHTTP1)
	for range 2 {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+apiHost+"\r\nX-Api-Key: "+w.placeholder+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err = errors.Join(err, res.Body.Close()); err != nil {
			t.Fatal(err)
		}
		w.checkClean(answer{Header: res.Header}, string(body))
	}
	direct, err := w.in.config.Dial(t.Context(), "tcp", apiHost+":443")
	if err != nil {
		t.Fatal(err)
	}
	up := w.upstreamTLS(direct)
	if _, err := io.WriteString(up, "GET / HTTP/1.1\r\nHost: "+apiHost+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(up)
	if err != nil || !strings.Contains(string(all), realValue) {
		t.Errorf("control: the server sends %q, %v", all, err)
	}
}
