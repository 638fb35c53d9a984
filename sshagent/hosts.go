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

// KnownHosts returns the keys of a host in the text of known_hosts files. It
// matches plain and hashed names and patterns. Like ssh, it omits revoked keys and
// ignores malformed lines.
func KnownHosts(text []byte, host string, port int) ([]ssh.PublicKey, error) {
	check, err := parseKnownHosts(text)
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(host, strconv.Itoa(port))
	// No host has this key, so the error lists the keys that the host has.
	var answer *knownhosts.KeyError
	if err := check(address, nowhere{}, noKey{}); !errors.As(err, &answer) {
		return nil, fmt.Errorf("look up %s in known_hosts: %w", address, err)
	}
	var out []ssh.PublicKey
	for _, k := range answer.Want {
		if check(address, nowhere{}, k.Key) == nil {
			out = append(out, k.Key)
		}
	}
	return out, nil
}

// parseKnownHosts parses the well-formed lines. The library reads only files and
// fails at the first malformed line, so the valid lines are copied to a memory
// file.
func parseKnownHosts(text []byte) (ssh.HostKeyCallback, error) {
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

// KnownHostsLine returns a line for a known_hosts file.
func KnownHostsLine(host string, port int, key ssh.PublicKey) string {
	return knownhosts.Line([]string{net.JoinHostPort(host, strconv.Itoa(port))}, key)
}

// nowhere is an address that matches no line.
type nowhere struct{}

func (nowhere) Network() string { return "tcp" }
func (nowhere) String() string  { return "0.0.0.0:0" }

// noKey is a key that no host has.
type noKey struct{}

func (noKey) Type() string                        { return "none" }
func (noKey) Marshal() []byte                     { return []byte("none") }
func (noKey) Verify([]byte, *ssh.Signature) error { return errors.New("no key") }
