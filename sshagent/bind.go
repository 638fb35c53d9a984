package sshagent

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// sessionBind is the extension with which OpenSSH's client (since 8.9) names the
// session that a connection to the agent is used for. It carries the server's
// signature as proof (OpenSSH, PROTOCOL.agent, section 1).
const sessionBind = "session-bind@openssh.com"

// binding is a session and the host key of its server. The server's possession
// of the key was verified if the key is listed.
type binding struct {
	raw       []byte
	hostKey   ssh.PublicKey
	sessionID []byte
}

// maxSessionID is the maximum length of a session identifier, which is a hash, in
// bytes.
const maxSessionID = 128

// parseBinding verifies that the host key has signed the session identifier. The
// signature of an unlisted host is not verified, because the agent never signs in
// its sessions: verification runs outside the sandbox and its limits, and very
// large keys would let the sandbox consume much CPU there.
func parseBinding(contents []byte, listed func(ssh.PublicKey) bool) (*binding, error) {
	var m struct {
		HostKey, SessionID, Signature []byte
		Forwarding                    bool
	}
	if err := ssh.Unmarshal(contents, &m); err != nil {
		return nil, fmt.Errorf("parse session-bind: %w", err)
	}
	key, err := ssh.ParsePublicKey(m.HostKey)
	if err != nil {
		return nil, fmt.Errorf("parse host key: %w", err)
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(m.Signature, &sig); err != nil {
		return nil, fmt.Errorf("parse host signature: %w", err)
	}
	switch {
	case m.Forwarding:
		return nil, errors.New("agent forwarding is not allowed: the remote host could use the agent")
	case len(m.SessionID) == 0 || len(m.SessionID) > maxSessionID:
		return nil, fmt.Errorf("invalid session identifier: %d bytes (max %d)", len(m.SessionID), maxSessionID)
	}
	if _, isCert := key.(*ssh.Certificate); isCert {
		return nil, errors.New("host certificates are not supported")
	}
	if listed(key) {
		if err := key.Verify(m.SessionID, &sig); err != nil {
			return nil, fmt.Errorf("verify host signature of the session: %w", err)
		}
	}
	return &binding{raw: bytes.Clone(contents), hostKey: key, sessionID: m.SessionID}, nil
}

// Public key authentication methods: RFC 4252, section 7, and OpenSSH's, whose
// signed data include the host key (OpenSSH, PROTOCOL, section 3.1).
const (
	methodPublicKey = "publickey"
	methodHostBound = "publickey-hostbound-v00@openssh.com"
	msgUserauth     = 50
)

// permits reports whether data is an authentication request with this key, for
// one of its hosts, in the session that the connection is bound to.
func (k Key) permits(b *binding, data []byte) error {
	if b == nil {
		return errors.New("missing session-bind: the ssh client must be OpenSSH 8.9 or later")
	}
	var m struct {
		SessionID             []byte
		Type                  byte
		User, Service, Method string
		HasSignature          bool
		Algorithm             string
		Blob                  []byte
		Rest                  []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(data, &m); err != nil {
		return errors.New("not an authentication request")
	}
	hostBound := m.Method == methodHostBound
	switch {
	case m.Type != msgUserauth || m.Service != "ssh-connection" || !m.HasSignature || m.Method != methodPublicKey && !hostBound:
		return errors.New("not an authentication request")
	case !bytes.Equal(ssh.Marshal(m), data):
		return errors.New("invalid encoding of the authentication request")
	case !bytes.Equal(m.SessionID, b.sessionID):
		return errors.New("the authentication request is for another session")
	case !bytes.Equal(m.Blob, k.Public.Marshal()):
		return errors.New("the authentication request names another user key")
	case hostBound && !bytes.Equal(m.Rest, ssh.Marshal(struct{ K []byte }{b.hostKey.Marshal()})):
		return errors.New("the authentication request names another host key")
	case !hostBound && len(m.Rest) > 0:
		return errors.New("trailing data after the authentication request")
	}
	for _, h := range k.Hosts {
		if (h.User == "" || h.User == m.User) && h.has(b.hostKey) {
			return nil
		}
	}
	return fmt.Errorf("the key is not listed for user %q at the host with key %s", m.User, ssh.FingerprintSHA256(b.hostKey))
}

func (h Host) has(key ssh.PublicKey) bool {
	for _, k := range h.Keys {
		if bytes.Equal(k.Marshal(), key.Marshal()) {
			return true
		}
	}
	return false
}
