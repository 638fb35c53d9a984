package bottle

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/idna"

	"github.com/bot-bottle/bottle/netns"
)

// serveOpenProxy starts a proxy without any checks: it connects to every address
// that it is asked for, in every notation.
func serveOpenProxy(t *testing.T, ns, addr string) string {
	t.Helper()
	var l net.Listener
	listen := func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	}
	do := listen
	if ns != "" {
		do = func() error { return netns.Do(ns, listen) }
	}
	if err := do(); err != nil {
		t.Fatalf("start the open proxy: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				_ = c.SetDeadline(time.Now().Add(5 * time.Second))
				in := bufio.NewReader(c)
				for openProxyRequest(ns, c, in) == nil {
				}
			}()
		}
	}()
	return l.Addr().String()
}

func openProxyRequest(ns string, c net.Conn, in *bufio.Reader) error {
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	var host string
	for {
		header, err := in.ReadString('\n')
		if err != nil {
			return err
		}
		if header == "\r\n" {
			break
		}
		if v, ok := strings.CutPrefix(header, "Host: "); ok {
			host = strings.TrimSpace(v)
		}
	}
	method, target, _ := strings.Cut(strings.TrimSpace(line), " ")
	target, _, _ = strings.Cut(target, " ")
	if method == http.MethodConnect {
		return openProxyTunnel(ns, c, in, target)
	}
	return openProxyForward(ns, c, target, host)
}

func openProxyTunnel(ns string, c net.Conn, in io.Reader, target string) error {
	up, err := openProxyDial(ns, target)
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return err
	}
	defer func() { _ = up.Close() }()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	go func() {
		_, _ = io.Copy(up, in)
		_ = up.SetDeadline(time.Now().Add(100 * time.Millisecond))
	}()
	_, _ = io.Copy(c, up)
	return io.EOF
}

func openProxyForward(ns string, c net.Conn, url, host string) error {
	authority, path, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	if i := strings.LastIndexByte(authority, '@'); i >= 0 {
		authority = authority[i+1:]
	}
	authority, _, _ = strings.Cut(authority, "\x00")
	up, err := openProxyDial(ns, authority+":80")
	if err != nil {
		_, _ = io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return err
	}
	defer func() { _ = up.Close() }()
	_ = up.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := fmt.Fprintf(up, "GET /%s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(up), nil)
	if err != nil {
		return err
	}
	return errors.Join(res.Write(c), res.Body.Close())
}

// openProxyDial parses a host as inet_aton(3) and browsers do, truncates it at a NUL
// and tries every address of a name.
func openProxyDial(ns, target string) (net.Conn, error) {
	target, _, cut := strings.Cut(target, "\x00")
	if cut && !strings.Contains(target, ":") {
		target += ":443"
	}
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else if a, ok := inetAton(host); ok {
		addrs = []netip.Addr{a}
	} else {
		if ascii, err := idna.New(idna.MapForLookup()).ToASCII(host); err == nil {
			host = ascii
		}
		// The dot at the end prevents the use of search domains. The resolver is
		// reachable from the host's namespace.
		if addrs, err = net.DefaultResolver.LookupNetIP(context.Background(), "ip", strings.TrimSuffix(host, ".")+"."); err != nil {
			return nil, err
		}
	}
	conn, err := net.Conn(nil), errors.New("no address")
	for _, a := range addrs {
		to := net.JoinHostPort(a.Unmap().String(), port)
		var next net.Conn
		if ns != "" {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			next, err = netns.DialIn(ctx, ns, "tcp", to)
			cancel()
		} else {
			next, err = net.DialTimeout("tcp", to, time.Second)
		}
		if err != nil {
			continue
		}
		if conn != nil {
			_ = conn.Close()
		}
		conn = next
	}
	if conn == nil {
		return nil, err
	}
	return conn, nil
}

// inetAton parses an address of one to four numbers, decimal, octal or hexadecimal.
// The last one fills the remaining bytes (inet_aton(3)).
func inetAton(s string) (netip.Addr, bool) {
	parts := strings.Split(s, ".")
	if len(parts) > 4 {
		return netip.Addr{}, false
	}
	var v uint64
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 0, 32)
		if err != nil {
			return netip.Addr{}, false
		}
		if i == len(parts)-1 {
			v |= n
		} else {
			v |= n << (8 * (3 - i))
		}
	}
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), true
}
