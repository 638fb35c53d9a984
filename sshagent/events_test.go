package sshagent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// TestEvents checks the reports of granted and refused signatures.
func TestEvents(t *testing.T) {
	s := newFixture(t)
	root := s.login()
	root.User = "root"
	bind := func(by ssh.Signer) {
		if err := s.bind(by, sessionID, false); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = s.client.Sign(s.unlisted.PublicKey(), nil)
	_ = s.sign(s.login())
	bind(s.listed)
	if err := s.sign(s.login()); err != nil {
		t.Error(err)
	}
	_, _ = s.sign(root), s.sign(s.unboundLogin())
	_, _ = s.client.Sign(s.key, []byte("text"))

	key, hostKey := Fingerprint(s.key), Fingerprint(s.listed.PublicKey())
	want := []Event{
		{Reason: "unknown key"},
		{Key: key, User: "git", HostBound: true, Reason: "missing session-bind: the ssh client must be OpenSSH 8.9 or later"},
		{Key: key, User: "git", Host: "work", HostKey: hostKey, HostBound: true, Granted: true},
		{Key: key, User: "root", Host: "work", HostKey: hostKey, HostBound: true, Reason: `the key is not listed for user "root" at the host with key ` + hostKey},
		{Key: key, User: "git", Host: "work", HostKey: hostKey,
			Reason: "the authentication request does not name the host key of work: its server or the ssh client lacks host-bound authentication (OpenSSH 8.9)", Unbound: true},
		{Key: key, Host: "work", HostKey: hostKey, Reason: "not an authentication request"},
	}
	if got := s.events.take(); !slices.Equal(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}

	s = newFixture(t)
	bind(s.unlisted)
	_ = s.sign(s.login())
	if got := s.events.take(); len(got) != 1 || got[0].Granted || got[0].Host != "" || got[0].HostKey != Fingerprint(s.unlisted.PublicKey()) {
		t.Errorf("unlisted host: %+v", got)
	}
}

// TestReportFails checks that a signature that cannot be reported is not given.
func TestReportFails(t *testing.T) {
	s := newFixture(t)
	if err := s.bind(s.listed, sessionID, false); err != nil {
		t.Fatal(err)
	}
	s.events.err = errors.New("disk full")
	if s.sign(s.login()) == nil {
		t.Error("signed without a report")
	}
	s.events.err = nil
	if err := s.sign(s.login()); err != nil {
		t.Errorf("signature after the failure: %v", err)
	}
}

type signerFunc func(context.Context) (*ssh.Signature, error)

func (f signerFunc) Sign(ctx context.Context, _, _ []byte, _ agent.SignatureFlags) (*ssh.Signature, error) {
	return f(ctx)
}

// TestSignerFails checks that a permitted signature that the signer cannot create is
// reported as refused.
func TestSignerFails(t *testing.T) {
	s := newFixture(t)
	s.client = connectTo(t, New([]Key{{Public: s.key, Hosts: []Host{{Name: "work", Keys: []PublicKey{s.listed.PublicKey()}}},
		Signer: signerFunc(func(context.Context) (*ssh.Signature, error) { return nil, errors.New("user declined") })}},
		slog.New(slog.DiscardHandler), s.events.report))
	if err := s.bind(s.listed, sessionID, false); err != nil {
		t.Fatal(err)
	}
	if s.sign(s.login()) == nil {
		t.Error("signed")
	}
	if got := s.events.take(); len(got) != 1 || got[0].Granted || got[0].Host != "work" || got[0].Reason != "user declined" {
		t.Errorf("events %+v", got)
	}
}
