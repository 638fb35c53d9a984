package sshagent

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// ErrPassphrase is wrapped when a private key needs a passphrase, or another.
var ErrPassphrase = errors.New("the passphrase is wrong")

// ErrLocked is wrapped when a private key needs a passphrase and none was given.
var ErrLocked = errors.New("the key has a passphrase")

// ParsePrivate reads a private key. Of a locked one the public half is returned
// with ErrLocked, if its format shows it.
func ParsePrivate(text, passphrase []byte) (ssh.PublicKey, Signer, error) {
	parse := ssh.ParseRawPrivateKey
	if passphrase != nil {
		parse = func(text []byte) (any, error) { return ssh.ParseRawPrivateKeyWithPassphrase(text, passphrase) }
	}
	private, err := parse(text)
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return locked.PublicKey, nil, ErrLocked
	case err != nil && passphrase != nil:
		return nil, nil, ErrPassphrase
	case err != nil:
		return nil, nil, err
	}
	// A keyring makes each algorithm's signatures as clients ask for them.
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		return nil, nil, err
	}
	keys, err := ring.List()
	if err != nil || len(keys) != 1 {
		return nil, nil, fmt.Errorf("%d keys: %w", len(keys), err)
	}
	public, err := ssh.ParsePublicKey(keys[0].Blob)
	if err != nil {
		return nil, nil, err
	}
	extended, ok := ring.(agent.ExtendedAgent)
	if !ok {
		return nil, nil, errors.New("the keyring makes one kind of signature only")
	}
	return public, own{public, extended}, nil
}

// own is a key that is in this process.
type own struct {
	public ssh.PublicKey
	ring   agent.ExtendedAgent
}

func (o own) Sign(_, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	return o.ring.SignWithFlags(o.public, data, flags)
}

// ParsePublic reads one public key as a .pub file has it.
func ParsePublic(text []byte) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey(text)
	if err != nil || len(options) > 0 || len(rest) > 0 {
		return nil, errors.New("no public key, such as ssh-ed25519 AAAA…")
	}
	return key, nil
}

// Upstream is an agent of the user's own, by its socket.
type Upstream string

// List returns the keys that the agent has.
func (u Upstream) List() ([]ssh.PublicKey, error) {
	conn, err := net.Dial("unix", string(u))
	if err != nil {
		return nil, fmt.Errorf("ask your ssh agent: %w", err)
	}
	defer func() { _ = conn.Close() }()
	list, err := agent.NewClient(conn).List()
	if err != nil {
		return nil, fmt.Errorf("ask your ssh agent: %w", err)
	}
	var out []ssh.PublicKey
	for _, k := range list {
		key, err := ssh.ParsePublicKey(k.Blob)
		if err != nil {
			continue // of a kind that is not known here, and cannot be matched
		}
		out = append(out, key)
	}
	return out, nil
}

// Signer has the agent sign with one of its keys.
func (u Upstream) Signer(key ssh.PublicKey) Signer { return upstreamKey{u, key} }

type upstreamKey struct {
	agent Upstream
	key   ssh.PublicKey
}

func (k upstreamKey) Sign(bind, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	conn, err := net.Dial("unix", string(k.agent))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	client := agent.NewClient(conn)
	// A key that its user has limited to some hosts wants to know the session;
	// other agents may not know the message.
	_, _ = client.Extension(sessionBind, bind)
	return client.SignWithFlags(k.key, data, flags)
}

// PublicKey is a public key, of a user or a host.
type PublicKey = ssh.PublicKey

// Line is a public key as a .pub file has it, without a comment.
func Line(key PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// Fingerprint names a key as ssh-keygen -l does.
func Fingerprint(key PublicKey) string { return ssh.FingerprintSHA256(key) }
