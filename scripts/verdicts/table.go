package main

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// timeout limits one request; headTime is the built-in proxy's header timeout.
const (
	timeout  = 30 * time.Second
	headTime = 3 * time.Second
)

// Verdicts. A refusal is "refused" and its status; a tunnel that is refused after
// the 200 is closed.
const (
	allowed = "allowed"
	closed  = "closed"
	silent  = "silent" // neither an answer nor a close within timeout
)

// request is one request and the expected verdict.
type request struct {
	name, want string
	text       string        // sent first
	pieces     []string      // sent then, with a pause before each
	tunnel     []byte        // sent in the tunnel
	pause      time.Duration // between its bytes
	listen     bool          // nothing is sent in the tunnel: the server sends first
	// converse replaces all of the above.
	converse func(addr string) string
}

func dial(addr string) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", addr, timeout)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), c.SetDeadline(time.Now().Add(timeout))
}

// send sends the request to the proxy at addr and returns the verdict.
func (r request) send(addr string) string {
	if r.converse != nil {
		return r.converse(addr)
	}
	c, err := dial(addr)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = c.Close() }()
	for i, text := range append([]string{r.text}, r.pieces...) {
		if i > 0 {
			time.Sleep(pauseTime) // a slow client
		}
		if _, err := io.WriteString(c, text); err != nil {
			break // the response shows why
		}
	}
	method, _, _ := strings.Cut(r.text, " ")
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		return failure(err)
	}
	defer func() { _ = res.Body.Close() }()
	if method == http.MethodConnect && res.StatusCode == http.StatusOK {
		return r.through(c, br)
	}
	return verdict(res)
}

// verdict reads a complete response.
func verdict(res *http.Response) string {
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	switch {
	case err != nil:
		return failure(err)
	case strings.Contains(string(body), mark):
		return allowed
	}
	return fmt.Sprintf("refused %d", res.StatusCode)
}

// failure is the verdict when there is no response, or an unexpected one.
func failure(err error) string {
	var refused refusedError
	if errors.As(err, &refused) {
		return string(refused)
	}
	var op *net.OpError
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return silent
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, &op):
		return closed
	}
	return err.Error()
}

func (r request) through(c net.Conn, br *bufio.Reader) string {
	if !r.listen {
		for i := range r.tunnel {
			if r.pause == 0 {
				_, _ = c.Write(r.tunnel) // a failure shows in the response
				break
			}
			_, _ = c.Write(r.tunnel[i : i+1])
			time.Sleep(r.pause)
		}
	}
	text := make([]byte, len("SSH-2.0-"+mark))
	n, err := io.ReadAtLeast(br, text, len(mark))
	got := string(text[:n])
	switch {
	case strings.Contains(got, mark), strings.HasPrefix(got, "SSH-2.0"):
		return allowed
	case err == nil:
		return fmt.Sprintf("answered %q", got)
	}
	return failure(err)
}

// hello is the first message of a TLS handshake for a server's name.
func hello(name string) []byte {
	client, server := net.Pipe()
	go func() {
		// It ends with the pipe; an empty name sends no SNI.
		_ = tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() //nolint:gosec // only the first message is needed
	}()
	buf := make([]byte, 16<<10)
	n, _ := server.Read(buf)
	_, _ = server.Close(), client.Close()
	return buf[:n]
}

func connect(target, sni, want string) request {
	name := "CONNECT " + target + " for " + sni
	if sni == "" {
		name = "CONNECT " + target + " without a server name"
	}
	return request{
		name: name, want: want, tunnel: hello(sni),
		text: "CONNECT " + target + " HTTP/1.1\r\nHost: " + target + "\r\n\r\n",
	}
}

func get(target, want string, headers ...string) request {
	text := "GET " + target + " HTTP/1.1\r\nHost: x\r\n" + strings.Join(append(headers, ""), "\r\n") + "Connection: close\r\n\r\n"
	return request{name: strings.TrimSpace("GET " + target + " " + strings.Join(headers, " ")), want: want, text: text}
}

func (r request) named(name string) request { r.name = name; return r }

// hosts contains the forms in which a host can be written, and the expected
// verdicts.
var hosts = []struct{ host, sni, want string }{
	{"api.verdict.test", "api.verdict.test", allowed},
	{"API.Verdict.TEST", "api.verdict.test", allowed},
	{"api.verdict.test.", "api.verdict.test", allowed},
	{randomHost, randomHost, allowed},
	{deniedHost, deniedHost, "refused 403"},
	{"DENIED.Wild.verdict.test.", deniedHost, "refused 403"},
	{"wild.verdict.test", "wild.verdict.test", allowed},
	{"a.wild.verdict.test", "a.wild.verdict.test", allowed},
	{"a.b.wild.verdict.test", "a.b.wild.verdict.test", allowed},
	{"A.WILD.verdict.test.", "a.wild.verdict.test", allowed},
	{"xn--bcher-kva.verdict.test", "xn--bcher-kva.verdict.test", allowed},
	{"other.verdict.test", "other.verdict.test", "refused 403"},
	{"sub.api.verdict.test", "sub.api.verdict.test", "refused 403"},
	{"evilapi.verdict.test", "evilapi.verdict.test", "refused 403"},
	{"evilwild.verdict.test", "evilwild.verdict.test", "refused 403"},
	{"api.verdict.test.evil.test", "api.verdict.test.evil.test", "refused 403"},
	{"verdict.test", "verdict.test", "refused 403"},
	{"test", "test", "refused 403"},
	{"localhost", "localhost", "refused 403"},
	{"inside.verdict.test", "inside.verdict.test", "refused 403"},
	{"meta.verdict.test", "meta.verdict.test", "refused 403"},
	{"lost.verdict.test", "lost.verdict.test", "refused 403"},
	{"169.254.169.254", "", "refused 403"},
	{"10.99.0.10", "", "refused 403"},
	{"127.0.0.1", "", "refused 403"},
	{"0.0.0.0", "", "refused 403"},
	{"[::1]", "", "refused 403"},
	{"[::ffff:169.254.169.254]", "", "refused 403"},
	{"[fd00:99::10]", "", "refused 403"},
	{"[64:ff9b::a9fe:a9fe]", "", "refused 403"},
	{"127.1", "", "refused 400"},
	{"2130706433", "", "refused 400"},
	{"0x7f000001", "", "refused 400"},
	{"0177.0.0.1", "", "refused 400"},
	{"api..verdict.test", "", "refused 400"},
	{".api.verdict.test", "", "refused 400"},
	{"-api.verdict.test", "", "refused 400"},
	{"api.verdict.test..", "", "refused 400"},
}

func table(upstream string) []request {
	var out []request
	for _, h := range hosts {
		out = append(out, connect(h.host+":443", h.sni, h.want), get("http://"+h.host+"/", h.want))
	}
	out = append(out, connect(upstream+":443", "", allowed), get("http://"+upstream+"/", allowed))
	return slices.Concat(out, ports(), streams(), plain(), websockets(), halves(), bodies(), redirects())
}

// ports requests each kind of entry on its own and on other ports.
func ports() (out []request) {
	own := map[string]map[int]bool{
		"api.verdict.test": {443: true, 80: true}, "a.wild.verdict.test": {443: true, 80: true}, "port.verdict.test": {8443: true},
		"git.verdict.test": {22: true}, "git2.verdict.test": {2222: true}, "other.verdict.test": {},
		"range.verdict.test": {8443: true},
	}
	for _, host := range []string{"api.verdict.test", "a.wild.verdict.test", "port.verdict.test", "git.verdict.test", "git2.verdict.test", "other.verdict.test", "range.verdict.test"} {
		for _, port := range []int{22, 80, 443, 2222, 8443} {
			want := "refused 403"
			if own[host][port] {
				want = allowed
			}
			r := connect(fmt.Sprintf("%s:%d", host, port), host, want)
			// An HTTP server answers a TLS client without the mark.
			if port == 80 && want == allowed {
				continue
			}
			r.listen = port == 22 || port == 2222
			out = append(out, r.named(fmt.Sprintf("port %d of %s", port, host)))
		}
	}
	for _, target := range []string{"api.verdict.test", "api.verdict.test:", "api.verdict.test:0", "api.verdict.test:65536", "api.verdict.test:+443", "api.verdict.test:0443", ":443"} {
		out = append(out, connect(target, "api.verdict.test", "refused 400"))
	}
	return out
}

// streams tests which protocols are allowed in a tunnel.
func streams() []request {
	const api = "api.verdict.test:443"
	own := hello("api.verdict.test")
	tunnel := func(name string, first []byte, want string) request {
		r := connect(api, "", want)
		r.tunnel = first
		return r.named(name)
	}
	slow := tunnel("a handshake of single bytes", own[:60], closed)
	slow.pause = time.Millisecond
	complete := tunnel("a handshake, slowly", own, allowed)
	complete.pause = time.Microsecond
	return []request{
		connect(api, "other.verdict.test", closed), connect(api, "evilapi.verdict.test", closed), connect(api, "", closed),
		connect("a.wild.verdict.test:443", "b.wild.verdict.test", closed), connect("port.verdict.test:8443", "api.verdict.test", closed),
		connect("git.verdict.test:22", "git.verdict.test", allowed).named("TLS on ssh's port, for the host"),
		tunnel("ssh on 443", []byte("SSH-2.0-x\r\n"), closed),
		tunnel("HTTP on 443", []byte("GET / HTTP/1.1\r\n\r\n"), `answered "HTTP/1.1 400 Ba"`),
		inHTTP("HTTP in a tunnel to 80", "GET / HTTP/1.1\r\nHost: api.verdict.test\r\n\r\n", allowed),
		inHTTP("HTTP in a tunnel, for another port", "GET / HTTP/1.1\r\nHost: api.verdict.test:443\r\n\r\n", "refused 403"),
		inHTTP("HTTP in a tunnel, for another host", "GET / HTTP/1.1\r\nHost: a.wild.verdict.test\r\n\r\n", "refused 403"),
		inHTTP("HTTP in a tunnel, a URL", "GET http://api.verdict.test/ HTTP/1.1\r\nHost: api.verdict.test\r\n\r\n", closed),
		tunnel("zeros on 443", make([]byte, 512), closed),
		tunnel("a record of another kind", []byte("\x17\x03\x03\x00\x05hello"), closed),
		complete, slow,
	}
}

// plain tests requests without a tunnel.
func plain() []request {
	const token = "ghp_" + "0123456789abcdefghijABCDEFGHIJ012345"
	otherHost := get("http://other.verdict.test/", "refused 403").named("a refused URL with the Host of an allowed one")
	otherHost.text = strings.Replace(otherHost.text, "Host: x", "Host: api.verdict.test", 1)
	return []request{
		get("http://api.verdict.test:80/", allowed), get("http://api.verdict.test:8080/", "refused 403"),
		get("http://other.verdict.test/", "refused 400", "Host: api.verdict.test").named("two Host headers"),
		otherHost,
		get("http://api.verdict.test/", allowed, "X-Forwarded-Host: other.verdict.test"),
		get("https://api.verdict.test/", "refused 403"), get("ftp://api.verdict.test/", "refused 403"), get("file:///etc/passwd", "refused 403"),
		get("http://user:pw@api.verdict.test/", "refused 400"), get("/", "refused 404"), get("http:///", "refused 400"),
		get("http://api.verdict.test/?q="+token, "refused 403").named("a token in the URL"),
		get("http://api.verdict.test/", "refused 403", "Authorization: Bearer "+token).named("a token in a header"),
		get("http://api.verdict.test/"+strings.Repeat("x", 9000), "refused 403").named("a URL of 9000 bytes"),
	}
}
