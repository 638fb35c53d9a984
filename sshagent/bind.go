package sshagent

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// sessionBind is the message by which OpenSSH's client, from 8.9 on, tells its
// agent which session a connection is for, with the server's own signature as
// proof (OpenSSH, PROTOCOL.agent, section 1).
const sessionBind = "session-bind@openssh.com"

// binding is a session whose server was seen to have a host key, if that is listed.
type binding struct {
	raw       []byte
	hostKey   ssh.PublicKey
	sessionID []byte
}

// maxSessionID bounds a session's identifier, which is a hash, in bytes.
const maxSessionID = 128

// parseBinding checks that the host key has signed the session's identifier: as
// that is a hash over the key exchange, nobody else's session has it. A host that
// is not listed is not checked, as nothing is ever signed in its sessions: the work
// is done outside of the sandbox and its limits, and with keys as large as there are
// an agent could make a lot of it.
func parseBinding(contents []byte, listed func(ssh.PublicKey) bool) (*binding, error) {
	var m struct {
		HostKey, SessionID, Signature []byte
		Forwarding                    bool
	}
	if err := ssh.Unmarshal(contents, &m); err != nil {
		return nil, fmt.Errorf("read the session's binding: %w", err)
	}
	key, err := ssh.ParsePublicKey(m.HostKey)
	if err != nil {
		return nil, fmt.Errorf("read the session's host key: %w", err)
	}
	var sig ssh.Signature
	if err := ssh.Unmarshal(m.Signature, &sig); err != nil {
		return nil, fmt.Errorf("read the host's signature: %w", err)
	}
	switch {
	case m.Forwarding:
		return nil, errors.New("a forwarded agent could be used by the host that it is forwarded to")
	case len(m.SessionID) == 0 || len(m.SessionID) > maxSessionID:
		return nil, fmt.Errorf("a session identifier of %d bytes", len(m.SessionID))
	}
	if _, isCert := key.(*ssh.Certificate); isCert {
		return nil, errors.New("host certificates are not supported")
	}
	if listed(key) {
		if err := key.Verify(m.SessionID, &sig); err != nil {
			return nil, fmt.Errorf("the host key has not signed this session: %w", err)
		}
	}
	return &binding{raw: bytes.Clone(contents), hostKey: key, sessionID: m.SessionID}, nil
}

// Methods of a login with a key: RFC 4252, section 7, and OpenSSH's, which adds
// the host key to what is signed (OpenSSH, PROTOCOL, section 3.1).
const (
	methodPublicKey = "publickey"
	methodHostBound = "publickey-hostbound-v00@openssh.com"
	msgUserauth     = 50
)

// permits tells whether data is a login, with this key, at one of its hosts, in
// the session that the connection is bound to.
func (k Key) permits(b *binding, data []byte) error {
	if b == nil {
		return errors.New("the session's host is not known: the ssh client has to be OpenSSH 8.9 or later")
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
		return errors.New("what is to be signed is no login")
	}
	hostBound := m.Method == methodHostBound
	switch {
	case m.Type != msgUserauth || m.Service != "ssh-connection" || !m.HasSignature || m.Method != methodPublicKey && !hostBound:
		return errors.New("what is to be signed is no login")
	case !bytes.Equal(ssh.Marshal(m), data):
		return errors.New("the login is not in its one form")
	case !bytes.Equal(m.SessionID, b.sessionID):
		return errors.New("the login is for another session")
	case !bytes.Equal(m.Blob, k.Public.Marshal()):
		return errors.New("the login is with another key")
	case hostBound && !bytes.Equal(m.Rest, ssh.Marshal(struct{ K []byte }{b.hostKey.Marshal()})):
		return errors.New("the login is for another host key")
	case !hostBound && len(m.Rest) > 0:
		return errors.New("there is more behind the login")
	}
	for _, h := range k.Hosts {
		if (h.User == "" || h.User == m.User) && h.has(b.hostKey) {
			return nil
		}
	}
	return fmt.Errorf("the key is not listed for %q at the host with the key %s", m.User, ssh.FingerprintSHA256(b.hostKey))
}

func (h Host) has(key ssh.PublicKey) bool {
	for _, k := range h.Keys {
		if bytes.Equal(k.Marshal(), key.Marshal()) {
			return true
		}
	}
	return false
}
