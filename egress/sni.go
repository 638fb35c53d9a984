package egress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// errNotTLS means that the client's first bytes are neither a TLS handshake nor an
// HTTP request.
var errNotTLS = errors.New("neither TLS nor an HTTP/1 request: only ssh entries may carry other protocols")

// sniError means that the TLS server name is not the host of the CONNECT.
type sniError struct {
	host, name string
}

func (e *sniError) Error() string {
	if e.name == "" {
		return "TLS handshake has no server name (SNI), CONNECT named " + e.host
	}
	return fmt.Sprintf("TLS handshake is for %q, CONNECT named %s", shorten(maskText(e.name)), e.host)
}

// maxHello is the maximum size of a ClientHello with its record headers.
// crypto/tls accepts messages of up to 64 KiB, in records with 5 more octets.
const maxHello = 80 << 10

// recordHandshake is the first octet of a TLS handshake record (RFC 8446,
// section 5.1).
const recordHandshake = 22

// firstKind is what the client's first bytes in a tunnel are.
type firstKind int

const (
	firstNone  firstKind = iota // not known: none, or too few
	firstTLS                    // a TLS handshake
	firstHTTP                   // an HTTP request with a path as target
	firstOther                  // another protocol
)

// maxMethod is the length of the longest method that is recognized.
const maxMethod = 20

// classify returns the kind of a stream that begins with p, and firstNone if more
// bytes are needed.
func classify(p []byte) firstKind {
	if len(p) == 0 {
		return firstNone
	}
	if p[0] == recordHandshake {
		return firstTLS
	}
	n := 0
	for n < len(p) && n <= maxMethod && (p[n] >= 'A' && p[n] <= 'Z' || p[n] == '-') {
		n++
	}
	switch {
	case n == 0 || n > maxMethod:
		return firstOther
	case n == len(p), n+1 == len(p) && p[n] == ' ':
		return firstNone
	case p[n] == ' ' && (p[n+1] == '/' || p[n+1] == '*'):
		return firstHTTP
	}
	return firstOther
}

// readFirst reads as much from the client, into early, as it takes to set first.
// EOF before the first byte is not an error, and leaves it at firstNone.
func (t *tunnel) readFirst(deadline time.Time) error {
	if err := t.client.SetReadDeadline(deadline); err != nil {
		return err
	}
	for {
		switch t.first = classify(t.early); {
		case t.first == firstNone && len(t.early) > 0 && t.ssh:
			t.first = firstOther // as any that is not TLS
			return nil
		case t.first != firstNone:
			return nil
		}
		buf := make([]byte, 2048)
		n, err := t.client.Read(buf)
		t.early = append(t.early, buf[:n]...)
		if n > 0 {
			continue
		}
		if len(t.early) == 0 {
			return firstByteError(err)
		}
		t.first = firstOther
		return nil // check what there is
	}
}

// checkFirst checks the client's first bytes: a TLS handshake, which is read into
// early, for the host of the CONNECT, or another stream if that is permitted.
func (t *tunnel) checkFirst(deadline time.Time) error {
	switch {
	case t.first == firstNone:
		return nil
	case t.first == firstTLS:
	case t.ssh:
		return nil
	default:
		return t.enforce(errNotTLS)
	}
	if err := t.client.SetReadDeadline(deadline); err != nil {
		return err
	}
	t.hello.memory = t.server.memory
	name, seen, err := readHello(io.MultiReader(bytes.NewReader(t.early), t.client), &t.hello)
	t.early = seen
	var ref *refusalError
	switch {
	case errors.As(err, &ref):
		return ref
	case err != nil:
		return t.enforce(err)
	}
	return t.enforce(t.matchName(name))
}

// enforce returns err. While a policy is being learned, it logs err and returns
// nil instead.
func (t *tunnel) enforce(err error) error {
	if err == nil || !t.learn {
		return err
	}
	t.server.logWouldBlock(http.MethodConnect, t.target.String(), &refusalError{scanner: "sni", reason: err.Error(), rule: t.rule})
	return nil
}

// matchName requires the server name to be the host of the CONNECT. It may be
// missing for an address, which SNI cannot carry (RFC 6066 section 3).
func (t *tunnel) matchName(name string) error {
	if _, err := netip.ParseAddr(t.target.host); err == nil && name == "" {
		return nil
	}
	if got, _, err := normalHost(name); err != nil || got != t.target.host {
		return &sniError{host: t.target.host, name: name}
	}
	return nil
}

// errHelloSeen aborts a handshake after its first message was read.
var errHelloSeen = errors.New("ClientHello read")

// readHello uses crypto/tls to read a ClientHello. It returns the server name
// and all bytes that were read, which are charged to mem.
func readHello(r io.Reader, mem *charge) (name string, seen []byte, err error) {
	var record bytes.Buffer
	conn := &helloConn{r: io.TeeReader(io.LimitReader(&chargedReader{r: r, charge: mem}, maxHello), &record)}
	err = tls.Server(conn, &tls.Config{
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			name = hello.ServerName
			return nil, errHelloSeen
		},
	}).Handshake()
	var notTLS tls.RecordHeaderError
	switch {
	case errors.Is(err, errHelloSeen):
		return name, record.Bytes(), nil
	case errors.As(err, &notTLS):
		return "", record.Bytes(), errNotTLS
	}
	return "", record.Bytes(), fmt.Errorf("read TLS handshake: %w", err)
}

// helloConn is a connection for reading a handshake. Writes are discarded.
type helloConn struct {
	net.Conn // nil: the handshake uses only the methods below
	r        io.Reader
}

func (c *helloConn) Read(p []byte) (int, error)       { return c.r.Read(p) }
func (c *helloConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *helloConn) Close() error                     { return nil }
func (c *helloConn) SetDeadline(time.Time) error      { return nil }
func (c *helloConn) SetReadDeadline(time.Time) error  { return nil }
func (c *helloConn) SetWriteDeadline(time.Time) error { return nil }
func (c *helloConn) LocalAddr() net.Addr              { return nil }
func (c *helloConn) RemoteAddr() net.Addr             { return nil }

// chargedReader charges what it reads of a ClientHello to the memory budget.
type chargedReader struct {
	r      io.Reader
	charge *charge
	n      int64
}

func (c *chargedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if !c.charge.set(c.n * helloCost) {
		return n, &refusalError{scanner: "ratelimit", reason: "the TLS handshakes of all open tunnels together are too large"}
	}
	return n, err
}

// firstByteError wraps the error of a Read that returned no byte. A client that
// closes without sending anything is not an error.
func firstByteError(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("wait for first bytes from client: %w", err)
}
