package sshagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/bot-bottle/bottle/internal/asuser"
)

// ErrPassphrase is returned when the passphrase does not decrypt the private key.
var ErrPassphrase = errors.New("incorrect passphrase")

// ErrLocked is returned when an encrypted private key is parsed without a passphrase.
var ErrLocked = errors.New("the key has a passphrase")

// ParsePrivate parses a private key. For an encrypted key without a passphrase it
// returns ErrLocked, and the public key if the format contains it.
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
	// A keyring implements the signature algorithms that clients can request.
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		return nil, nil, err
	}
	keys, err := ring.List()
	if err != nil || len(keys) != 1 {
		return nil, nil, fmt.Errorf("list keyring: %d keys: %w", len(keys), err)
	}
	public, err := ssh.ParsePublicKey(keys[0].Blob)
	if err != nil {
		return nil, nil, err
	}
	extended, ok := ring.(agent.ExtendedAgent)
	if !ok {
		return nil, nil, errors.New("the keyring does not support signature flags")
	}
	return public, localKey{public, extended}, nil
}

// localKey is a private key held by this process.
type localKey struct {
	public ssh.PublicKey
	ring   agent.ExtendedAgent
}

func (k localKey) Sign(_ context.Context, _, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	return k.ring.SignWithFlags(k.public, data, flags)
}

// ParsePublic parses one public key in the format of a .pub file.
func ParsePublic(text []byte) (ssh.PublicKey, error) {
	key, _, options, rest, err := ssh.ParseAuthorizedKey(text)
	if err != nil || len(options) > 0 || len(rest) > 0 {
		return nil, errors.New("not a public key, such as ssh-ed25519 AAAA…")
	}
	return key, nil
}

// Upstream is the user's own ssh agent. It is connected to with the user's rights: as
// root, bottle could use the agent of any user.
type Upstream struct {
	Socket string // path
	User   asuser.User
}

// Timeouts of requests to the user's own agent. It may ask the user to confirm a
// signature or to touch a security key.
const (
	listTimeout = 10 * time.Second
	signTimeout = time.Minute
)

// dial connects to the agent, until the timeout or the end of the context.
func (u Upstream) dial(ctx context.Context, timeout time.Duration) (client agent.ExtendedAgent, closeConn func(), err error) {
	var conn net.Conn
	err = asuser.Run(u.User, func() (err error) {
		conn, err = net.DialTimeout("unix", u.Socket, timeout)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	return agent.NewClient(conn), func() { stop(); _ = conn.Close() }, nil
}

// List returns the public keys that the agent holds.
func (u Upstream) List() ([]ssh.PublicKey, error) {
	client, closeConn, err := u.dial(context.Background(), listTimeout)
	if err != nil {
		return nil, fmt.Errorf("list the keys of your ssh agent: %w", err)
	}
	defer closeConn()
	list, err := client.List()
	if err != nil {
		return nil, fmt.Errorf("list the keys of your ssh agent: %w", err)
	}
	var out []ssh.PublicKey
	for _, k := range list {
		key, err := ssh.ParsePublicKey(k.Blob)
		if err != nil {
			continue // an unknown key type cannot match
		}
		out = append(out, key)
	}
	return out, nil
}

// Signer returns a signer that uses one of the agent's keys.
func (u Upstream) Signer(key ssh.PublicKey) Signer { return upstreamKey{u, key} }

type upstreamKey struct {
	agent Upstream
	key   ssh.PublicKey
}

func (k upstreamKey) Sign(ctx context.Context, bind, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error) {
	client, closeConn, err := k.agent.dial(ctx, signTimeout)
	if err != nil {
		return nil, err
	}
	defer closeConn()
	// The agent needs the session for keys with destination constraints. Agents
	// that do not know the extension fail here and can still sign.
	_, _ = client.Extension(sessionBind, bind)
	return client.SignWithFlags(k.key, data, flags)
}

// PublicKey is the public key of a user or a host.
type PublicKey = ssh.PublicKey

// Line returns a public key in the format of a .pub file, without a comment.
func Line(key PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// Fingerprint returns the fingerprint that ssh-keygen -l prints.
func Fingerprint(key PublicKey) string { return ssh.FingerprintSHA256(key) }
