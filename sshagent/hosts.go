package sshagent

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
	"golang.org/x/sys/unix"
)

// KnownHosts finds the keys of a host in the text of known_hosts files, by plain
// and hashed names and by patterns. Revoked keys are left out, and lines that are
// none are passed over, as ssh does.
func KnownHosts(text []byte, host string, port int) ([]ssh.PublicKey, error) {
	check, err := knownHostsOf(text)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(host, strconv.Itoa(port))
	// No host has this key, so that the answer lists those it has.
	var answer *knownhosts.KeyError
	if err := check(address, nowhere{}, noKey{}); !errors.As(err, &answer) {
		return nil, fmt.Errorf("look %s up in known_hosts: %w", address, err)
	}
	var out []ssh.PublicKey
	for _, k := range answer.Want {
		if check(address, nowhere{}, k.Key) == nil {
			out = append(out, k.Key)
		}
	}
	return out, nil
}

// knownHostsOf reads the lines that are well-formed. The library reads files
// only, and fails at the first line that is not: so they go to one in memory.
func knownHostsOf(text []byte) (ssh.HostKeyCallback, error) {
	fd, err := unix.MemfdCreate("known_hosts", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("read known_hosts: %w", err)
	}
	f := os.NewFile(uintptr(fd), "known_hosts")
	defer func() { _ = f.Close() }()
	for line := range bytes.Lines(text) {
		if _, _, _, _, _, err := ssh.ParseKnownHosts(line); err != nil {
			continue
		}
		if _, err := f.Write(append(bytes.TrimRight(line, "\r\n"), '\n')); err != nil {
			return nil, fmt.Errorf("read known_hosts: %w", err)
		}
	}
	check, err := knownhosts.New("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, fmt.Errorf("read known_hosts: %w", err)
	}
	return check, nil
}

// KnownHostsLine is a line for a known_hosts file.
func KnownHostsLine(host string, port int, key ssh.PublicKey) string {
	return knownhosts.Line([]string{net.JoinHostPort(host, strconv.Itoa(port))}, key)
}

// nowhere is an address that no line is for.
type nowhere struct{}

func (nowhere) Network() string { return "tcp" }
func (nowhere) String() string  { return "0.0.0.0:0" }

// noKey is no host's.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }
