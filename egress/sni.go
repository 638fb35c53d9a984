package egress

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// errNotTLS means that the client's first bytes are not a TLS handshake.
var errNotTLS = errors.New("not TLS: only ssh entries may carry other protocols")

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

// checkFirst reads the client's first bytes, early data included, and checks
// that their TLS server name is the host of the CONNECT. It returns all bytes
// that it read. EOF before the first byte is not an error.
func (t *tunnel) checkFirst(deadline time.Time) ([]byte, error) {
	if err := t.client.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	first := t.early
	if len(first) == 0 {
		first = make([]byte, 2048)
		n, err := t.client.Read(first)
		first = first[:n]
		if n == 0 {
			return nil, firstByteError(err)
		}
	}
	if first[0] != recordHandshake {
		if t.allowNonTLS && !t.learn {
			return first, nil
		}
		return first, t.enforce(errNotTLS)
	}
	name, seen, err := readHello(io.MultiReader(bytes.NewReader(first), t.client))
	if err != nil {
		return seen, t.enforce(err)
	}
	return seen, t.enforce(t.matchName(name))
}

// enforce returns err. While a policy is being learned, it logs err and returns
// nil instead.
func (t *tunnel) enforce(err error) error {
	if err == nil || !t.learn {
		return err
	}
	t.server.logWouldBlock(http.MethodConnect, t.target, &refusalError{scanner: "sni", reason: err.Error(), rule: t.rule})
	return nil
}

// matchName requires the server name to be the host of the CONNECT. It may be
// missing for an address, which SNI cannot carry (RFC 6066 section 3).
func (t *tunnel) matchName(name string) error {
	want, addr, err := normalHost(t.host)
	if err != nil {
		return err
	}
	if addr.IsValid() && name == "" {
		return nil
	}
	if got, _, err := normalHost(name); err != nil || got != want {
		return &sniError{host: t.host, name: name}
	}
	return nil
}

// errHelloSeen aborts a handshake after its first message was read.
var errHelloSeen = errors.New("ClientHello read")

// readHello uses crypto/tls to read a ClientHello. It returns the server name
// and all bytes that were read.
func readHello(r io.Reader) (name string, seen []byte, err error) {
	var record bytes.Buffer
	conn := &helloConn{r: io.TeeReader(io.LimitReader(r, maxHello), &record)}
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

// firstByteError wraps the error of a Read that returned no byte. A client that
// closes without sending anything is not an error.
func firstByteError(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("wait for first bytes from client: %w", err)
}
