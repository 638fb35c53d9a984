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

// errNotTLS: the client's first bytes are not a TLS handshake.
var errNotTLS = errors.New("not TLS: only an ssh entry of the bottle may carry another protocol")

// sniError: the client asks for another server than it told the proxy.
type sniError struct {
	host, name string
}

func (e *sniError) Error() string {
	if e.name == "" {
		return "the TLS handshake names no server (SNI), CONNECT named " + e.host
	}
	return fmt.Sprintf("the TLS handshake is for %q, CONNECT named %s", shorten(e.name), e.host)
}

// maxHello bounds what is read before the handshake's first message is whole;
// crypto/tls itself takes at most 64 KiB of it, in records with 5 octets more.
const maxHello = 80 << 10

// recordHandshake is the first octet of a TLS handshake record, RFC 8446
// section 5.1.
const recordHandshake = 22

// checkFirst reads the client's first bytes, those that came early included,
// and holds the server name in them against the host of the CONNECT. It gives
// back all that it read. An end before the first byte is no error.
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
			return nil, firstError(err)
		}
	}
	if first[0] != recordHandshake {
		if t.anyStream && !t.learn {
			return first, nil
		}
		return first, t.learnt(errNotTLS)
	}
	name, seen, err := readHello(io.MultiReader(bytes.NewReader(first), t.client))
	if err != nil {
		return seen, t.learnt(err)
	}
	return seen, t.learnt(t.matchName(name))
}

// learnt takes an error for none, and notes it, while a policy is being learnt.
func (t *tunnel) learnt(err error) error {
	if err == nil || !t.learn {
		return err
	}
	t.server.wouldRefuse(http.MethodConnect, t.target, &refusalError{scanner: "sni", reason: err.Error(), rule: t.rule})
	return nil
}

// matchName wants the host itself; nothing for an address, which TLS clients
// do not name (RFC 6066 section 3).
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

// errHelloSeen breaks a handshake off once its first message was read.
var errHelloSeen = errors.New("hello seen")

// readHello lets crypto/tls read a ClientHello and gives its server name and
// every byte that was read for it.
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
	return "", record.Bytes(), fmt.Errorf("reading the client's TLS handshake: %w", err)
}

// helloConn is a connection on which a handshake can be read, and on which
// nothing is answered.
type helloConn struct {
	net.Conn // nil: a handshake uses no more than what is here
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

// firstError is what a Read before any byte ended with; a client that goes away
// without a word made no mistake.
func firstError(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("waiting for the client's first bytes: %w", err)
}
