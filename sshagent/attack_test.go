package sshagent

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// serveSSH runs an ssh server that accepts the user key for every user. Like other
// servers based on this library, it does not support host-bound authentication.
func serveSSH(t *testing.T, hostKey ssh.Signer, userKey ssh.PublicKey) (address string) {
	t.Helper()
	config := &ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) != string(userKey.Marshal()) {
			return nil, errors.New("unknown key")
		}
		return &ssh.Permissions{}, nil
	}}
	config.AddHostKey(hostKey)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			server, _, requests, err := ssh.NewServerConn(conn, config)
			if err != nil {
				_ = conn.Close() // the client has the error too
				continue
			}
			go ssh.DiscardRequests(requests)
			_ = server.Wait() // ends with the client
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

// thief is a client in the sandbox that holds the private key of the listed host.
// It binds the session of any server it connects to as if the listed host had
// signed it.
type thief struct{ fixture }

func (f thief) PublicKey() ssh.PublicKey { return f.key }

func (f thief) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	return f.SignWithAlgorithm(nil, data, "")
}

func (f thief) SignWithAlgorithm(_ io.Reader, data []byte, _ string) (*ssh.Signature, error) {
	var m struct {
		SessionID []byte
		Rest      []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(data, &m); err != nil {
		return nil, err
	}
	if err := f.bind(f.listed, m.SessionID, false); err != nil {
		return nil, err
	}
	return f.client.Sign(f.key, data)
}

// login logs in at the address as the listed user.
func (f thief) login(address string) error {
	client, err := ssh.Dial("tcp", address, &ssh.ClientConfig{
		User: "git", Auth: []ssh.AuthMethod{ssh.PublicKeys(f)},
		HostKeyCallback: ssh.FixedHostKey(f.unlisted.PublicKey()),
	})
	if err == nil {
		err = client.Close()
	}
	return err
}

// TestStolenHostKey logs in at a server that is not listed, with the private key of
// a listed host. The control, an entry with Unbound, shows that the attack works
// where the signed data need not name the host.
func TestStolenHostKey(t *testing.T) {
	for name, c := range map[string]struct {
		unbound bool
		reason  string
	}{
		"host-bound":       {false, "does not name the host key of work"},
		"control: unbound": {true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFixtureFor(t, Host{User: "git", Unbound: c.unbound})
			err := thief{s}.login(serveSSH(t, s.unlisted, s.key))
			if (err == nil) != c.unbound {
				t.Errorf("login at an unlisted host: %v", err)
			}
			events := s.events.take()
			if len(events) != 1 || events[0].Granted != c.unbound || !strings.Contains(events[0].Reason, c.reason) {
				t.Errorf("events %+v", events)
			}
		})
	}
}

// TestStolenHostKeyBound has the thief name the listed host key in the signed data:
// the agent signs, but the data are not those of a login elsewhere. A server that
// supports the method compares the host key with its own (OpenSSH, PROTOCOL, section
// 3.1).
func TestStolenHostKeyBound(t *testing.T) {
	s := newFixture(t)
	other := []byte("exchange hash of another session")
	if err := s.bind(s.listed, other, false); err != nil {
		t.Fatal(err)
	}
	l := s.login()
	l.ID = other
	l.Rest = hostField(s.unlisted)
	if s.sign(l) == nil {
		t.Error("signed a login that names an unlisted host key")
	}
}

// TestUnlistedHostKey binds with the server's own key, which is not listed. Even an
// entry with Unbound does not permit it.
func TestUnlistedHostKey(t *testing.T) {
	s := newFixtureFor(t, Host{User: "git", Unbound: true})
	honest := thief{s}
	honest.listed = s.unlisted
	if err := honest.login(serveSSH(t, s.unlisted, s.key)); err == nil {
		t.Error("logged in at an unlisted host")
	}
}
