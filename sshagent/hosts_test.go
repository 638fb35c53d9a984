package sshagent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

func TestKnownHosts(t *testing.T) {
	one, _ := newSigner(t)
	two, _ := newSigner(t)
	bad, _ := newSigner(t)
	line := func(names string, s ssh.Signer) string { return names + " " + Line(s.PublicKey()) }
	text := strings.Join([]string{
		"# a comment", "",
		line("plain.test,192.0.2.1", one),
		line(knownhosts.HashHostname("hashed.test"), one),
		line(knownhosts.HashHostname("[hashed.test]:2222"), two),
		line("[port.test]:2222", one),
		line("*.wild.test,!not.wild.test", one),
		line("two.test", one), line("two.test", two),
		line("@revoked revoked.test", bad), line("revoked.test", bad), line("revoked.test", one),
		"broken.test ssh-ed25519 AAAA", "broken", "|1|x|y ssh-rsa z",
		line("windows.test", one) + "\r",
		line("last.test", two),
	}, "\n")
	for at, want := range map[string][]ssh.Signer{
		"plain.test:22": {one}, "plain.test:2222": nil, "192.0.2.1:22": {one},
		"hashed.test:22": {one}, "hashed.test:2222": {two}, "hashed.test:1": nil,
		"port.test:2222": {one}, "port.test:22": nil,
		"a.wild.test:22": {one}, "not.wild.test:22": nil,
		"revoked.test:22": {one}, "windows.test:22": {one}, "last.test:22": {two},
		"unknown.test:22": nil, "broken.test:22": nil,
	} {
		host, port, _ := strings.Cut(at, ":")
		var n int
		if _, err := fmt.Sscan(port, &n); err != nil {
			t.Fatal(err)
		}
		keys, err := KnownHosts([]byte(text), host, n)
		if err != nil {
			t.Errorf("%s: %v", at, err)
		}
		var got, wanted []string
		for _, k := range keys {
			got = append(got, Fingerprint(k))
		}
		for _, s := range want {
			wanted = append(wanted, Fingerprint(s.PublicKey()))
		}
		if !slices.Equal(got, wanted) {
			t.Errorf("%s: got %v, want %v", at, got, wanted)
		}
	}
	if keys, err := KnownHosts([]byte(text), "two.test", 22); err != nil || len(keys) == 0 {
		t.Errorf("two keys: %v, %v", keys, err)
	}
	if got := KnownHostsLine("x.test", 2222, one.PublicKey()); got != "[x.test]:2222 "+Line(one.PublicKey()) {
		t.Errorf("line %q", got)
	}
}
