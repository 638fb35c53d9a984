package sshagent

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// sessionBind is the extension with which OpenSSH's client (since 8.9) names the
// session that a connection to the agent is used for. It contains the server's
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

// maxUser is the maximum length of a user name in bytes. Linux accepts 32
// (useradd(8)); forges and gateways put more into it.
const maxUser = 256

// login is the data that a client signs for public key authentication.
type login struct {
	SessionID             []byte
	Type                  byte
	User, Service, Method string
	HasSignature          bool
	Algorithm             string
	Key                   []byte
	HostKey               []byte `ssh:"rest"` // with its length, in a host-bound login
}

func (l *login) hostBound() bool { return l.Method == methodHostBound }

// parseLogin rejects everything that is not a public key login, such as signatures
// of files and git commits, and every encoding other than the canonical one.
func parseLogin(data []byte) (*login, error) {
	l := &login{}
	if err := ssh.Unmarshal(data, l); err != nil {
		return nil, errors.New("not an authentication request")
	}
	switch {
	case l.Type != msgUserauth || l.Service != "ssh-connection" || !l.HasSignature || l.Method != methodPublicKey && !l.hostBound():
		return nil, errors.New("not an authentication request")
	case !bytes.Equal(ssh.Marshal(l), data):
		return nil, errors.New("invalid encoding of the authentication request")
	case len(l.User) > maxUser:
		return nil, fmt.Errorf("invalid user name: %d bytes (max %d)", len(l.User), maxUser)
	case !l.hostBound() && len(l.HostKey) > 0:
		return nil, errors.New("trailing data after the authentication request")
	}
	return l, nil
}

// permits returns the host that the login is for, if it is one of the key's hosts
// and the connection is bound to the session of the login.
//
// The session-bind alone does not prove where the login will be used. It proves that
// the holder of a listed host key has signed the session identifier, and that holder
// can sign the identifier of its own session with another server. Therefore the
// signed data must contain the host key, unless nobody else can hold it or the user
// has accepted the risk.
func (k Key) permits(b *binding, l *login) (Host, error) {
	switch {
	case b == nil:
		return Host{}, errors.New("missing session-bind: the ssh client must be OpenSSH 8.9 or later")
	case !bytes.Equal(l.SessionID, b.sessionID):
		return Host{}, errors.New("the authentication request is for another session")
	case !bytes.Equal(l.Key, k.Public.Marshal()):
		return Host{}, errors.New("the authentication request names another user key")
	case l.hostBound() && !bytes.Equal(l.HostKey, ssh.Marshal(struct{ K []byte }{b.hostKey.Marshal()})):
		return Host{}, errors.New("the authentication request names another host key")
	}
	bound := l.hostBound() || Forge(b.hostKey) != ""
	err := fmt.Errorf("the key is not listed for user %q at the host with key %s", l.User, ssh.FingerprintSHA256(b.hostKey))
	for _, h := range k.Hosts {
		if h.User != "" && h.User != l.User || !h.has(b.hostKey) {
			continue
		}
		if bound || h.Unbound {
			return h, nil
		}
		err = fmt.Errorf("%w of %s: its server or the ssh client lacks host-bound authentication (OpenSSH 8.9)", errUnbound, h.Name)
	}
	return Host{}, err
}

// errUnbound is wrapped by the refusal of a login that only Host.Unbound would permit.
var errUnbound = errors.New("the authentication request does not name the host key")

// hostName returns the name of the first host with the host key, of those of k or else
// of any key.
func (a *Agent) hostName(k Key, host ssh.PublicKey) string {
	for _, k := range append([]Key{k}, a.keys...) {
		if name := k.hostName(host); name != "" {
			return name
		}
	}
	return ""
}

// hostName returns the name of the first host with the host key.
func (k Key) hostName(key ssh.PublicKey) string {
	for _, h := range k.Hosts {
		if h.has(key) {
			return h.Name
		}
	}
	return ""
}

func (h Host) has(key ssh.PublicKey) bool {
	for _, k := range h.Keys {
		if bytes.Equal(k.Marshal(), key.Marshal()) {
			return true
		}
	}
	return false
}
