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
	Name string          // the name of the host in reports
	Keys []ssh.PublicKey // any one of them identifies the server
	User string          // login user; empty allows any user
	// Unbound also permits logins whose signed data do not name the server, for
	// servers that do not support host-bound authentication. Whoever holds a
	// private key of the host can then use such a signature to log in at any other
	// server that accepts the user key. See Forge for the keys that need no option.
	Unbound bool
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
	Sign(ctx context.Context, bind, data []byte, flags agent.SignatureFlags) (*ssh.Signature, error)
}

// Event reports a requested signature.
type Event struct {
	Host      string // the listed host of the session; empty if it is unknown
	HostKey   string // fingerprint of its host key; empty without a session-bind
	User      string // login user; chosen by the client, at most maxUser bytes
	Key       string // fingerprint of the user key; empty if the agent lacks it
	HostBound bool   // the signed data name the host key
	Granted   bool
	Reason    string // why it was refused
	// Unbound reports that it was refused only because the signed data do not name the
	// host key. Host.Unbound would permit it.
	Unbound bool
}

// Agent answers requests of the ssh agent protocol.
type Agent struct {
	keys   []Key
	log    *slog.Logger
	report func(Event) error
	budget *budget
}

// New returns an agent that serves keys. It logs each refused request with the
// reason. It calls report for each requested signature before it answers, and
// refuses the signature if report fails; report may be called concurrently.
func New(keys []Key, log *slog.Logger, report func(Event) error) *Agent {
	return &Agent{keys: keys, log: log, report: report, budget: newBudget()}
}

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

// maxRequest is the maximum length of a request in bytes. OpenSSH's agent accepts
// 256 KiB, for requests that this agent does not support; a login takes a few
// kilobytes even with large keys.
const maxRequest = 32 << 10

// Serve answers the requests of one client until its stream or the context ends.
func (a *Agent) Serve(ctx context.Context, rw io.ReadWriter) error {
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
		if err := a.budget.spend(ctx, request[0]); err != nil {
			return err
		}
		answer := c.answer(ctx, request)
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
func (c *client) answer(ctx context.Context, request []byte) []byte {
	var answer []byte
	err := errors.New("unsupported request")
	failure := byte(msgFailure)
	switch request[0] {
	case msgRequestIdentities:
		return c.identities()
	case msgSignRequest:
		answer, err = c.sign(ctx, request[1:])
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

// sign reports the request, whether it is granted or refused.
func (c *client) sign(ctx context.Context, body []byte) ([]byte, error) {
	var e Event
	sig, err := c.signature(ctx, body, &e)
	e.Granted = err == nil
	if err != nil {
		e.Reason, e.Unbound = err.Error(), errors.Is(err, errUnbound)
	}
	if rerr := c.agent.report(e); rerr != nil {
		return nil, fmt.Errorf("report signature: %w", errors.Join(rerr, err))
	}
	if err != nil {
		return nil, err
	}
	return ssh.Marshal(struct {
		Type byte
		Sig  []byte
	}{msgSignResponse, ssh.Marshal(sig)}), nil
}

// signature fills in the event as far as the request is known.
func (c *client) signature(ctx context.Context, body []byte, e *Event) (*ssh.Signature, error) {
	var m struct {
		Blob, Data []byte
		Flags      uint32
	}
	if err := ssh.Unmarshal(body, &m); err != nil {
		return nil, err
	}
	i := slices.IndexFunc(c.agent.keys, func(k Key) bool { return bytes.Equal(k.Public.Marshal(), m.Blob) })
	if i < 0 {
		return nil, errors.New("unknown key")
	}
	k := c.agent.keys[i]
	e.Key = Fingerprint(k.Public)
	if c.bound != nil {
		e.HostKey = Fingerprint(c.bound.hostKey)
		e.Host = c.agent.hostName(k, c.bound.hostKey)
	}
	r, err := parseLogin(m.Data)
	if err != nil {
		return nil, err
	}
	e.User, e.HostBound = r.User, r.hostBound()
	h, err := k.permits(c.bound, r)
	if err != nil {
		return nil, err
	}
	e.Host = h.Name
	unlock, err := c.agent.budget.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return k.Signer.Sign(ctx, c.bound.raw, m.Data, agent.SignatureFlags(m.Flags))
}

// Relay serves the connections forwarded by the inner end of a relay until that
// end closes. It calls ready when the socket inside accepts connections.
func (a *Agent) Relay(ctx context.Context, in io.Reader, out io.Writer, ready func()) error {
	return relay.Serve(ctx, in, out, ready, func(ctx context.Context, conn io.ReadWriter) {
		if err := a.Serve(ctx, conn); err != nil && ctx.Err() == nil {
			a.log.Info("ssh agent closed a connection", "reason", err)
		}
	})
}
