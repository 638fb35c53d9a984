package sshagent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/bot-bottle/bottle/sshagent/relay"
)

// Host is a server that a key may be used at: whoever has one of the host keys.
type Host struct {
	Keys []ssh.PublicKey
	User string // to log in as; empty: anyone
}

// Key is a key that signs for its hosts.
type Key struct {
	Public ssh.PublicKey
	Hosts  []Host
	Signer Signer
}

// Signer makes signatures. Bind is the contents of the session-bind message
// that came before, for agents that want to see it themselves.
type Signer interface {
	Sign(bind, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error)
}

// Agent answers requests of the ssh agent protocol.
type Agent struct {
	keys []Key
	log  *slog.Logger
}

// New makes an agent of keys. What it refuses, and why, goes to the log.
func New(keys []Key, log *slog.Logger) *Agent { return &Agent{keys: keys, log: log} }

// Numbers of the agent protocol's messages (draft-miller-ssh-agent, 6.1).
const (
	msgFailure           = 5
	msgSuccess           = 6
	msgRequestIdentities = 11
	msgIdentitiesAnswer  = 12
	msgSignRequest       = 13
	msgSignResponse      = 14
	msgExtension         = 27
	msgExtensionFailure  = 28
)

// maxRequest bounds a request, as OpenSSH's agent does, in bytes.
const maxRequest = 256 << 10

// Serve answers one client until its stream ends.
func (a *Agent) Serve(rw io.ReadWriter) error {
	c := &client{agent: a}
	for {
		var head [4]byte
		if _, err := io.ReadFull(rw, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 || n > maxRequest {
			return fmt.Errorf("a request of %d bytes", n)
		}
		request := make([]byte, n)
		if _, err := io.ReadFull(rw, request); err != nil {
			return err
		}
		answer := c.answer(request)
		if _, err := rw.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(answer))), answer...)); err != nil {
			return err
		}
	}
}

// client is one connection. It is bound to one session at the most.
type client struct {
	agent *Agent
	bound *binding
}

// answer knows three requests. All else, such as to add or remove keys, fails.
func (c *client) answer(request []byte) []byte {
	var answer []byte
	err := errors.New("not supported")
	failure := byte(msgFailure)
	switch request[0] {
	case msgRequestIdentities:
		return c.identities()
	case msgSignRequest:
		answer, err = c.sign(request[1:])
	case msgExtension:
		failure = msgExtensionFailure
		answer, err = c.extension(request[1:])
	}
	if errors.Is(err, errUnknownExtension) {
		failure = msgFailure // draft-miller-ssh-agent, 4.7
	}
	if err != nil {
		c.agent.log.Info("ssh agent refuses", "request", request[0], "reason", err)
		return []byte{failure}
	}
	return answer
}

func (c *client) identities() []byte {
	out := binary.BigEndian.AppendUint32([]byte{msgIdentitiesAnswer}, uint32(len(c.agent.keys)))
	for _, k := range c.agent.keys {
		out = append(out, ssh.Marshal(struct {
			Blob    []byte
			Comment string
		}{k.Public.Marshal(), ""})...)
	}
	return out
}

// lists tells whether some key may be used at a host that has the given key.
func (a *Agent) lists(hostKey ssh.PublicKey) bool {
	return slices.ContainsFunc(a.keys, func(k Key) bool {
		return slices.ContainsFunc(k.Hosts, func(h Host) bool { return h.has(hostKey) })
	})
}

var errUnknownExtension = errors.New("an extension that is not known")

func (c *client) extension(body []byte) ([]byte, error) {
	var m struct {
		Name     string
		Contents []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	if m.Name != sessionBind {
		return nil, errUnknownExtension
	}
	b, err := parseBinding(m.Contents, c.agent.lists)
	if err != nil {
		return nil, err
	}
	// A second one would be a way to have a session signed for that another
	// host's key has stood for.
	if c.bound != nil && !bytes.Equal(c.bound.raw, b.raw) {
		return nil, errors.New("this connection is bound to another session")
	}
	c.bound = b
	return []byte{msgSuccess}, nil
}

func (c *client) sign(body []byte) ([]byte, error) {
	var m struct {
		Blob, Data []byte
		Flags      uint32
	}
	if err := ssh.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	for _, k := range c.agent.keys {
		if !bytes.Equal(k.Public.Marshal(), m.Blob) {
			continue
		}
		if err := k.permits(c.bound, m.Data); err != nil {
			return nil, err
		}
		sig, err := k.Signer.Sign(c.bound.raw, m.Data, agent.SignatureFlags(m.Flags))
		if err != nil {
			return nil, err
		}
		return ssh.Marshal(struct {
			Type byte
			Sig  []byte
		}{msgSignResponse, ssh.Marshal(sig)}), nil
	}
	return nil, errors.New("no such key")
}

// Relay answers what comes from a relay's inner end, until that ends. Ready is
// called when the socket inside listens.
func (a *Agent) Relay(ctx context.Context, in io.Reader, out io.Writer, ready func()) error {
	return relay.Serve(ctx, in, out, ready, func(conn io.ReadWriter) {
		if err := a.Serve(conn); err != nil {
			a.log.Info("ssh agent ends a connection", "reason", err)
		}
	})
}
