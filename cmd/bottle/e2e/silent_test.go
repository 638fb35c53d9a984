package e2e

import (
	"net"
	"testing"
)

// silent is a server on loopback that accepts and says nothing.
type silent struct {
	addr string
	l    net.Listener
}

func silentHost(t *testing.T) silent {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return silent{l.Addr().String(), l}
}

// accept returns when somebody has called.
func (s silent) accept(t *testing.T) {
	t.Helper()
	c, err := s.l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
}
