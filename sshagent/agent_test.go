package sshagent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func newSigner(t testing.TB) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s, private
}

func pemOf(t testing.TB, private any, passphrase string) []byte {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(private, "comment")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "comment", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// fixture is an agent with one key that is listed for one user at one host, and
// another host that is not listed.
type fixture struct {
	t                testing.TB
	client           agent.ExtendedAgent
	key              ssh.PublicKey
	listed, unlisted ssh.Signer
	events           *events
}

// events records reports of requested signatures.
type events struct {
	mu   sync.Mutex
	list []Event
	err  error // returned by report
}

func (r *events) report(e Event) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, e)
	return r.err
}

// take returns the events since the last call.
func (r *events) take() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.list
	r.list = nil
	return list
}

var sessionID = []byte("exchange hash of the session....")

func newFixture(t testing.TB) fixture { return newFixtureFor(t, Host{User: "git"}) }

// newFixtureFor completes the host.
func newFixtureFor(t testing.TB, h Host) fixture {
	t.Helper()
	_, private := newSigner(t)
	public, signer, err := ParsePrivate(pemOf(t, private, ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	s := fixture{t: t, key: public, events: &events{}}
	s.listed, _ = newSigner(t)
	s.unlisted, _ = newSigner(t)
	h.Name, h.Keys = "work", []PublicKey{s.listed.PublicKey()}
	s.client = connectTo(t, New([]Key{{Public: public, Signer: signer, Hosts: []Host{h}}}, slog.New(slog.DiscardHandler), s.events.report))
	return s
}

func noReport(Event) error { return nil }

func connectTo(t testing.TB, a *Agent) agent.ExtendedAgent {
	near, far := net.Pipe()
	go func() { _ = a.Serve(context.Background(), far); _ = far.Close() }()
	t.Cleanup(func() { _ = near.Close() })
	return agent.NewClient(near)
}

func (s fixture) bind(by ssh.Signer, id []byte, forwarding bool) error {
	s.t.Helper()
	sig, err := by.Sign(rand.Reader, id)
	if err != nil {
		s.t.Fatal(err)
	}
	return s.bindRaw(by.PublicKey().Marshal(), id, ssh.Marshal(sig), forwarding)
}

func (s fixture) bindRaw(hostKey, id, sig []byte, forwarding bool) error {
	_, err := s.client.Extension(sessionBind, ssh.Marshal(struct {
		HostKey, ID, Sig []byte
		Forwarding       bool
	}{hostKey, id, sig, forwarding}))
	return err
}

// rawLogin is the data that a client signs for authentication.
type rawLogin struct {
	ID                    []byte
	Type                  byte
	User, Service, Method string
	Has                   bool
	Algorithm             string
	Blob                  []byte
	Rest                  []byte `ssh:"rest"`
}

// login is a host-bound login as the listed user at the listed host.
func (s fixture) login() rawLogin {
	l := s.unboundLogin()
	l.Method, l.Rest = methodHostBound, hostField(s.listed)
	return l
}

// unboundLogin is the same login without the host key.
func (s fixture) unboundLogin() rawLogin {
	return rawLogin{sessionID, msgUserauth, "git", "ssh-connection", methodPublicKey, true, "ssh-ed25519", s.key.Marshal(), nil}
}

func (s fixture) sign(l rawLogin) error {
	s.t.Helper()
	data := ssh.Marshal(l)
	sig, err := s.client.Sign(s.key, data)
	if err == nil {
		err = s.key.Verify(data, sig)
		if err != nil {
			s.t.Errorf("invalid signature: %v", err)
		}
	}
	return err
}

func TestSigns(t *testing.T) {
	s := newFixture(t)
	if err := s.bind(s.listed, sessionID, false); err != nil {
		t.Fatal(err)
	}
	if err := s.sign(s.login()); err != nil {
		t.Errorf("login at the listed host: %v", err)
	}
	if err := s.sign(s.unboundLogin()); err == nil {
		t.Error("signed a login that does not name the host key")
	}
	// OpenSSH sends the binding again when it lists the keys again.
	if err := s.bind(s.listed, sessionID, false); err != nil {
		t.Errorf("repeated binding: %v", err)
	}
	keys, err := s.client.List()
	if err != nil || len(keys) != 1 || !bytes.Equal(keys[0].Blob, s.key.Marshal()) || keys[0].Comment != "" {
		t.Errorf("keys %v, %v", keys, err)
	}
}

// TestRefuses requests signatures that must be refused, each after a binding to the
// listed host for which TestSigns gets a signature.
func TestRefuses(t *testing.T) {
	other := []byte("exchange hash of another session")
	for name, change := range map[string]func(fixture, *rawLogin){
		"another session":             func(_ fixture, l *rawLogin) { l.ID = other },
		"another user":                func(_ fixture, l *rawLogin) { l.User = "root" },
		"no user":                     func(_ fixture, l *rawLogin) { l.User = "" },
		"another service":             func(_ fixture, l *rawLogin) { l.Service = "ssh-userauth" },
		"another method":              func(_ fixture, l *rawLogin) { l.Method = "hostbased" },
		"another message":             func(_ fixture, l *rawLogin) { l.Type = 51 },
		"no signature":                func(_ fixture, l *rawLogin) { l.Has = false },
		"another key":                 func(s fixture, l *rawLogin) { l.Blob = s.unlisted.PublicKey().Marshal() },
		"unbound":                     func(s fixture, l *rawLogin) { *l = s.unboundLogin() },
		"trailing data":               func(s fixture, l *rawLogin) { *l = s.unboundLogin(); l.Rest = []byte("x") },
		"long user name":              func(_ fixture, l *rawLogin) { l.User = strings.Repeat("g", maxUser+1) },
		"host-bound without host key": func(_ fixture, l *rawLogin) { l.Rest = nil },
		"host-bound to unlisted host": func(s fixture, l *rawLogin) { l.Rest = hostField(s.unlisted) },
		"host-bound with trailing data": func(s fixture, l *rawLogin) {
			l.Rest = append(hostField(s.listed), 'x')
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFixture(t)
			if err := s.bind(s.listed, sessionID, false); err != nil {
				t.Fatal(err)
			}
			l := s.login()
			change(s, &l)
			if s.sign(l) == nil {
				t.Error("signed")
			}
			if err := s.sign(s.login()); err != nil {
				t.Errorf("permitted signature after the refusal: %v", err)
			}
		})
	}
}

func hostField(s ssh.Signer) []byte {
	return ssh.Marshal(struct{ K []byte }{s.PublicKey().Marshal()})
}

func TestRefusesData(t *testing.T) {
	s := newFixture(t)
	if err := s.bind(s.listed, sessionID, false); err != nil {
		t.Fatal(err)
	}
	signature := "SSHSIG" + string(ssh.Marshal(struct{ A, B, C, D string }{"git", "", "sha512", "hash"}))
	trueAsTwo := ssh.Marshal(s.login())
	i := bytes.Index(trueAsTwo, []byte(methodHostBound+"\x01")) + len(methodHostBound)
	trueAsTwo[i] = 2 // RFC 4251, 5: stored as 1
	for name, data := range map[string]string{"file signature": signature, "empty": "", "text": "text", "non-canonical boolean": string(trueAsTwo)} {
		if _, err := s.client.Sign(s.key, []byte(data)); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

// TestBindings tries bindings without valid proof, and bindings to unlisted hosts.
func TestBindings(t *testing.T) {
	for name, bind := range map[string]func(s fixture) (bindFails bool, err error){
		"none":          func(fixture) (bool, error) { return false, nil },
		"unlisted host": func(s fixture) (bool, error) { return false, s.bind(s.unlisted, sessionID, false) },
		"forwarded":     func(s fixture) (bool, error) { return true, s.bind(s.listed, sessionID, true) },
		"forwarded by unlisted host": func(s fixture) (bool, error) {
			return true, s.bind(s.unlisted, sessionID, true)
		},
		"signature of unlisted host": func(s fixture) (bool, error) {
			sig, err := s.unlisted.Sign(rand.Reader, sessionID)
			if err != nil {
				s.t.Fatal(err)
			}
			return true, s.bindRaw(s.listed.PublicKey().Marshal(), sessionID, ssh.Marshal(sig), false)
		},
		"signature of another session": func(s fixture) (bool, error) {
			sig, err := s.listed.Sign(rand.Reader, []byte("another"))
			if err != nil {
				s.t.Fatal(err)
			}
			return true, s.bindRaw(s.listed.PublicKey().Marshal(), sessionID, ssh.Marshal(sig), false)
		},
		// Not verified, because the agent never signs for this host.
		"invalid signature of unlisted host": func(s fixture) (bool, error) {
			return false, s.bindRaw(s.unlisted.PublicKey().Marshal(), sessionID, ssh.Marshal(ssh.Signature{Format: "ssh-ed25519"}), false)
		},
		"empty session identifier": func(s fixture) (bool, error) { return true, s.bind(s.listed, nil, false) },
		"malformed":                func(s fixture) (bool, error) { return true, s.bindRaw([]byte("x"), sessionID, []byte("y"), false) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newFixture(t)
			fails, err := bind(s)
			if fails != (err != nil) {
				t.Errorf("bind: %v", err)
			}
			if s.sign(s.login()) == nil {
				t.Error("signed")
			}
		})
	}
	s := newFixture(t)
	if err := s.bind(s.unlisted, sessionID, false); err != nil {
		t.Fatal(err)
	}
	if s.bind(s.listed, sessionID, false) == nil || s.sign(s.login()) == nil {
		t.Error("a second binding replaces the first")
	}
}

func TestUnsupportedRequests(t *testing.T) {
	s := newFixture(t)
	_, private := newSigner(t)
	for name, err := range map[string]error{
		"add":        s.client.Add(agent.AddedKey{PrivateKey: private}),
		"remove":     s.client.Remove(s.key),
		"remove all": s.client.RemoveAll(),
		"lock":       s.client.Lock([]byte("x")),
		"unlock":     s.client.Unlock([]byte("x")),
	} {
		if err == nil {
			t.Errorf("%s succeeded", name)
		}
	}
	if _, err := s.client.Extension("query", nil); !errors.Is(err, agent.ErrExtensionUnsupported) {
		t.Errorf("unknown extension: %v", err)
	}
	if keys, err := s.client.List(); err != nil || len(keys) != 1 {
		t.Errorf("keys after refused requests: %v, %v", keys, err)
	}
}

func TestKeys(t *testing.T) {
	_, ed := newSigner(t)
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rs, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, private := range map[string]any{"ed25519": ed, "ecdsa": ec, "rsa": rs} {
		public, signer, err := ParsePrivate(pemOf(t, private, ""), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, flag := range []agent.SignatureFlags{0, agent.SignatureFlagRsaSha256, agent.SignatureFlagRsaSha512} {
			if name != "rsa" && flag != 0 {
				continue
			}
			sig, err := signer.Sign(t.Context(), nil, []byte("data"), flag)
			if err != nil || public.Verify([]byte("data"), sig) != nil {
				t.Errorf("%s, flags %d: %v", name, flag, err)
			}
		}
	}
	locked := pemOf(t, ed, "open sesame")
	if public, signer, err := ParsePrivate(locked, nil); !errors.Is(err, ErrLocked) || public == nil || signer != nil {
		t.Errorf("encrypted key without passphrase: %v, %v, %v", public, signer, err)
	}
	if _, _, err := ParsePrivate(locked, []byte("wrong")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("incorrect passphrase: %v", err)
	}
	if _, signer, err := ParsePrivate(locked, []byte("open sesame")); err != nil || signer == nil {
		t.Errorf("correct passphrase: %v", err)
	}
	if _, _, err := ParsePrivate([]byte("hunter2"), nil); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("not a key: %v", err)
	}
}

// FuzzServe sends arbitrary data as a client in the sandbox can.
func FuzzServe(f *testing.F) {
	s := newFixture(f)
	f.Add([]byte{0, 0, 0, 1, msgRequestIdentities})
	f.Add(append([]byte{0, 0, 0, 1, msgSignRequest}, ssh.Marshal(s.login())...))
	f.Add(append([]byte{0, 0, 0, 29, msgExtension, 0, 0, 0, 24}, sessionBind...))
	f.Fuzz(func(t *testing.T, data []byte) {
		a := New([]Key{{Public: s.key}}, slog.New(slog.DiscardHandler), noReport)
		_ = a.Serve(t.Context(), struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(data), io.Discard})
	})
}
