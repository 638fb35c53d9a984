package sshagent

import (
	"os"
	"testing"

	"golang.org/x/crypto/ssh"
)

// TestForges compares the fingerprints with the known_hosts lines that the forges
// publish.
func TestForges(t *testing.T) {
	text, err := os.ReadFile("testdata/forges.known_hosts")
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for len(text) > 0 {
		var hosts []string
		var key ssh.PublicKey
		if _, hosts, key, _, text, err = ssh.ParseKnownHosts(text); err != nil {
			t.Fatal(err)
		}
		lines++
		if got := Forge(key); got != hosts[0] {
			t.Errorf("%s key of %s: got %q", key.Type(), hosts[0], got)
		}
	}
	if lines != len(forges) {
		t.Errorf("%d fingerprints, want one for each of %d lines", len(forges), lines)
	}
	if other, _ := newSigner(t); Forge(other.PublicKey()) != "" {
		t.Errorf("unpublished key: got %q", Forge(other.PublicKey()))
	}
}

// TestForgeLogin checks that a login at a forge needs no host key in the signed
// data, but still the listed user. TestRefuses has the control.
func TestForgeLogin(t *testing.T) {
	s := newFixture(t)
	forges[Fingerprint(s.listed.PublicKey())] = "forge.test"
	t.Cleanup(func() { delete(forges, Fingerprint(s.listed.PublicKey())) })
	if err := s.bind(s.listed, sessionID, false); err != nil {
		t.Fatal(err)
	}
	if err := s.sign(s.unboundLogin()); err != nil {
		t.Errorf("login at a forge: %v", err)
	}
	other := s.unboundLogin()
	other.User = "root"
	if s.sign(other) == nil {
		t.Error("signed for a user that is not listed")
	}
}
