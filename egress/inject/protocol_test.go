package inject

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"strings"
	"testing"
)

// TestProtocolIsTheUpstreams: the client gets the protocol that the upstream chooses.
func TestProtocolIsTheUpstreams(t *testing.T) {
	for _, tc := range []struct {
		http2   bool
		offered []string
		want    string
	}{
		{true, []string{protoHTTP2, protoHTTP1}, protoHTTP2},
		{false, []string{protoHTTP2, protoHTTP1}, protoHTTP1},
		{true, []string{protoHTTP1}, protoHTTP1},
		{true, nil, ""},
		{true, []string{"acme-tls/1", protoHTTP1}, protoHTTP1},
	} {
		w := newWorld(t, options{http2: tc.http2, handler: http.NotFound})
		conn, _ := w.raw(tc.offered...)
		check(t, fmt.Sprintf("%v", tc), conn.ConnectionState().NegotiatedProtocol, tc.want)
	}
}

// TestEvents sends an event stream. The client must have each event before the upstream
// sends the next.
func TestEvents(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		next := make(chan struct{})
		w := newWorld(t, options{http2: http2, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			for i := range 5 {
				_, _ = fmt.Fprintf(w, "data: %d\n\n", i)
				_ = http.NewResponseController(w).Flush()
				select {
				case <-next:
				case <-r.Context().Done():
					return
				}
			}
		}})
		res, err := w.client(http2).Do(w.request(http.MethodGet, "/", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		br := bufio.NewReader(res.Body)
		for i := range 5 {
			line, err := br.ReadString('\n')
			if err != nil || line != fmt.Sprintf("data: %d\n", i) {
				t.Fatalf("event %d: %q, %v", i, line, err)
			}
			if _, err := br.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			next <- struct{}{}
		}
	})
}

// TestPartsOfBody: the response's header arrives without any of its body, and a part of
// the body without the rest, whether its length is known or not.
func TestPartsOfBody(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		for _, length := range []string{"", "8"} {
			next := make(chan struct{})
			w := newWorld(t, options{http2: http2, handler: func(w http.ResponseWriter, _ *http.Request) {
				if length != "" {
					w.Header().Set("Content-Length", length)
				}
				_ = http.NewResponseController(w).Flush()
				<-next
				_, _ = io.WriteString(w, "part")
				_ = http.NewResponseController(w).Flush()
				<-next
				_, _ = io.WriteString(w, "rest")
			}})
			res, err := w.client(http2).Do(w.request(http.MethodGet, "/", nil))
			if err != nil {
				t.Fatal(err)
			}
			check(t, "length", res.Header.Get("Content-Length"), length)
			for _, want := range []string{"part", "rest"} {
				next <- struct{}{}
				got := make([]byte, 4)
				if _, err := io.ReadFull(res.Body, got); err != nil {
					t.Fatal(err)
				}
				check(t, "body", string(got), want)
			}
			_ = res.Body.Close()
		}
	})
}

// TestStreamsBothWays is what gRPC does: messages are exchanged in turn, and trailers
// have the status.
func TestStreamsBothWays(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		w := newWorld(t, options{http2: http2, handler: func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			if got := r.Header.Get("Te"); http2 && got != "trailers" {
				t.Errorf("Te: %q", got)
			}
			w.Header().Set("Content-Type", "application/grpc")
			_ = http.NewResponseController(w).Flush()
			buf := make([]byte, 16)
			for {
				n, err := r.Body.Read(buf)
				if n > 0 {
					_, _ = w.Write(bytes.ToUpper(buf[:n]))
					_ = http.NewResponseController(w).Flush()
				}
				if err != nil {
					break
				}
			}
			w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
			w.Header().Set(http.TrailerPrefix+"X-Request-Trailer", r.Trailer.Get("X-End"))
		}})
		out, in := io.Pipe()
		r := w.request(http.MethodPost, "/package.Service/Method", out)
		r.Header.Set("Te", "trailers")
		r.Trailer = http.Header{"X-End": nil}
		res, err := w.client(http2).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		for _, message := range []string{"ping", "pong", "sk-ant-"} {
			if _, err := io.WriteString(in, message); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(message))
			if _, err := io.ReadFull(res.Body, got); err != nil {
				t.Fatal(err)
			}
			check(t, "answer", string(got), strings.ToUpper(message))
		}
		r.Trailer.Set("X-End", "bye")
		_ = in.Close()
		if rest, err := io.ReadAll(res.Body); err != nil || len(rest) > 0 {
			t.Fatalf("rest: %q, %v", rest, err)
		}
		check(t, "status", res.Trailer.Get("Grpc-Status"), "0")
		check(t, "request trailer", res.Trailer.Get("X-Request-Trailer"), "bye")
	})
}

// TestContinue: a body is not sent before the upstream wants it.
func TestContinue(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		w := newWorld(t, options{http2: http2, handler: func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/refuse" {
				w.WriteHeader(http.StatusExpectationFailed)
				return
			}
			_, _ = io.Copy(w, r.Body) // sends 100
		}})
		for path, want := range map[string]int{"/accept": 200, "/refuse": 417} {
			body := &observed{Reader: strings.NewReader("the body")}
			r := w.request(http.MethodPost, path, body)
			r.ContentLength = 8
			r.Header.Set("Expect", "100-continue")
			continued := false
			trace := &httptrace.ClientTrace{Got100Continue: func() { continued = true }}
			res, text := w.do(w.client(http2), r.WithContext(httptrace.WithClientTrace(r.Context(), trace)))
			check(t, path, res.StatusCode, want)
			// Go's HTTP/2 server does not pass on that a client waits.
			if !http2 || want == 200 {
				check(t, path+": continued", continued, want == 200)
				check(t, path+": body sent", body.read, want == 200)
			}
			if want == 200 {
				check(t, "body", text, "the body")
			}
		}
	})
}

type observed struct {
	io.Reader
	read bool
}

func (o *observed) Read(p []byte) (int, error) {
	o.read = true
	return o.Reader.Read(p)
}

// TestWebsocket upgrades, exchanges data in turn, and closes each direction for itself.
func TestWebsocket(t *testing.T) {
	w := newWorld(t, options{handler: func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Authorization")
		conn, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = brw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Echo: " + key + "\r\n\r\n")
		_ = brw.Flush()
		_, _ = io.Copy(conn, brw)               // until the client's half ends
		_, _ = io.WriteString(conn, "end "+key) // which leaves this one open
	}})
	conn, br := w.raw(protoHTTP1)
	if _, err := io.WriteString(conn, "GET /ws HTTP/1.1\r\nHost: "+apiHost+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nAuthorization: Bearer "+w.placeholder+"\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	check(t, "status", res.StatusCode, http.StatusSwitchingProtocols)
	check(t, "upgrade", res.Header.Get("Upgrade"), "websocket")
	check(t, "echo", res.Header.Get("X-Echo"), "Bearer "+w.placeholder)
	for _, message := range []string{"\x81\x05hello", "s", "sk-ant-api03-", "\x00\xff"} {
		if _, err := io.WriteString(conn, message); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(message))
		if _, err := io.ReadFull(br, got); err != nil {
			t.Fatal(err)
		}
		check(t, "message", string(got), message)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(br)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "after half-close", string(rest), "end Bearer "+w.placeholder)
	check(t, "status in the event", w.await(KindRequest).Status, http.StatusSwitchingProtocols)
}

// TestHalfClose: a client that sends no more still gets its responses.
func TestHalfClose(t *testing.T) {
	closed := make(chan struct{})
	w := newWorld(t, options{handler: func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-closed:
			_, _ = io.WriteString(w, "answer "+r.URL.Path)
		case <-r.Context().Done():
		}
	}})
	conn, br := w.raw(protoHTTP1)
	for _, path := range []string{"/1", "/2"} {
		if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.1\r\nHost: "+apiHost+"\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(closed)
	rest, err := io.ReadAll(br)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"answer /1", "answer /2"} {
		check(t, want, strings.Contains(string(rest), want), true)
	}
}

// TestClientLeaves: the upstream notices a client that ends its connection.
func TestClientLeaves(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		started, ended := make(chan struct{}), make(chan struct{})
		w := newWorld(t, options{http2: http2, handler: func(_ http.ResponseWriter, r *http.Request) {
			close(started)
			<-r.Context().Done()
			close(ended)
		}})
		ctx, cancel := context.WithCancel(t.Context())
		c := w.client(http2)
		done := make(chan error, 1)
		if http2 {
			go func() {
				res, err := c.Do(w.request(http.MethodGet, "/", nil).WithContext(ctx))
				if err == nil {
					_ = res.Body.Close()
				}
				done <- err
			}()
			<-started
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		} else {
			conn, _ := w.raw(protoHTTP1)
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+apiHost+"\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			<-started
			_ = conn.NetConn().Close() // as the kernel does for a killed process
		}
		<-ended
		cancel()
	})
}

// TestNothingElseChanges compares what the upstream and the client get with a direct
// connection.
func TestNothingElseChanges(t *testing.T) {
	u := &recorder{}
	w := newWorld(t, options{handler: func(w http.ResponseWriter, r *http.Request) {
		u.ServeHTTP(httpDiscard{w.Header()}, r)
		w.Header()["Date"] = nil
		w.Header()["Content-Type"] = nil
		w.Header().Set("Content-Length", "5")
		w.Header().Set("Etag", `"x"`)
		w.Header().Add("Set-Cookie", "a=b")
		w.Header().Add("Set-Cookie", "c=d")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = io.WriteString(w, "<a>b<")
	}})
	const text = "PUT /a%2fb/%7Ec//d'e;f|g\"h?x=1;y=%zz&%20+ HTTP/1.1\r\nHost: " + apiHost + "\r\n" +
		"Accept: */*\r\nContent-Length: 4\r\nForwarded: for=x\r\nRange: bytes=0-4\r\nX-Forwarded-For: 1.2.3.4\r\n\r\nbody"
	conn, br := w.raw(protoHTTP1)
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(br)
	if err != nil {
		t.Fatal(err)
	}
	check(t, "request", u.text(), text)
	check(t, "response", string(got), "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nEtag: \"x\"\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\r\n<a>b<")
}

// httpDiscard is a response that is not sent.
type httpDiscard struct{ h http.Header }

func (d httpDiscard) Header() http.Header       { return d.h }
func (httpDiscard) Write(p []byte) (int, error) { return len(p), nil }
func (httpDiscard) WriteHeader(int)             {}

// zeros is a body of n bytes.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestLargeBodies streams more than any buffer has, both ways, and in bounded memory.
func TestLargeBodies(t *testing.T) {
	const size = int64(256 << 20)
	both(t, func(t *testing.T, http2 bool) {
		w := newWorld(t, options{http2: http2, handler: func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err != nil || n != size {
				t.Errorf("upload: %d bytes, %v", n, err)
			}
			_, _ = io.Copy(w, zeros(size))
		}})
		before := heap()
		r := w.request(http.MethodPost, "/", zeros(size))
		r.ContentLength = size
		res, err := w.client(http2).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil || n != size {
			t.Errorf("download: %d bytes, %v", n, err)
		}
		e := w.await(KindRequest)
		check(t, "counted", fmt.Sprint(e.Sent, e.Received), fmt.Sprint(size, size))
		if grown := heap() - before; grown > size/4 {
			t.Errorf("the heap has grown by %d bytes", grown)
		}
	})
}

// heap is the largest size of the heap so far.
func heap() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapSys)
}

// TestKeepAlive sends several requests on one connection.
func TestKeepAlive(t *testing.T) {
	both(t, func(t *testing.T, http2 bool) {
		addrs := map[string]bool{}
		w := newWorld(t, options{http2: http2, handler: func(_ http.ResponseWriter, r *http.Request) { addrs[r.RemoteAddr] = true }})
		c := w.client(http2)
		for range 5 {
			w.do(c, w.request(http.MethodGet, "/", nil))
		}
		check(t, "upstream connections", len(addrs), 1)
	})
}
