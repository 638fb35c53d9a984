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

// Host is a server that a key may be used for, identified by its host keys.
type Host struct {
	Keys []ssh.PublicKey // any one of them identifies the server
	User string          // login user; empty allows any user
}

// Key is a user key and the hosts it may be used for.
type Key struct {
	Public ssh.PublicKey
	Hosts  []Host
	Signer Signer
}

// Signer creates signatures. Bind is the contents of the preceding session-bind
// message, for upstream agents that check it themselves.
type Signer interface {
	Sign(bind, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error)
}

// Agent answers requests of the ssh agent protocol.
type Agent struct {
	keys []Key
	log  *slog.Logger
}

// New returns an agent that serves keys. It logs each refused request with the
// reason.
func New(keys []Key, log *slog.Logger) *Agent { return &Agent{keys: keys, log: log} }

// Message numbers of the agent protocol (draft-miller-ssh-agent, section 6.1).
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

// maxRequest is the maximum length of a request in bytes, the same as in
// OpenSSH's agent.
const maxRequest = 256 << 10

// Serve answers the requests of one client until its stream ends.
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
			return fmt.Errorf("invalid request length: %d bytes (max %d)", n, maxRequest)
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

// client is one connection. It can be bound to at most one session.
type client struct {
	agent *Agent
	bound *binding
}

// answer supports three requests. All others, such as adding or removing keys,
// fail.
func (c *client) answer(request []byte) []byte {
	var answer []byte
	err := errors.New("unsupported request")
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
		c.agent.log.Info("ssh agent refused a request", "request", request[0], "reason", err)
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

// lists reports whether any key may be used for a host with the given host key.
func (a *Agent) lists(hostKey ssh.PublicKey) bool {
	return slices.ContainsFunc(a.keys, func(k Key) bool {
		return slices.ContainsFunc(k.Hosts, func(h Host) bool { return h.has(hostKey) })
	})
}

var errUnknownExtension = errors.New("unknown extension")

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
	// Replacing the binding would allow a signature for a session that was
	// authenticated by another host key.
	if c.bound != nil && !bytes.Equal(c.bound.raw, b.raw) {
		return nil, errors.New("the connection is already bound to another session")
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
	return nil, errors.New("unknown key")
}

// Relay serves the connections forwarded by the inner end of a relay until that
// end closes. It calls ready when the socket inside accepts connections.
func (a *Agent) Relay(ctx context.Context, in io.Reader, out io.Writer, ready func()) error {
	return relay.Serve(ctx, in, out, ready, func(_ context.Context, conn io.ReadWriter) {
		if err := a.Serve(conn); err != nil {
			a.log.Info("ssh agent closed a connection", "reason", err)
		}
	})
}
