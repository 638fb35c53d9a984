package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// sshUsers are the accounts, created by lab.d/init.sh. The first owns the
// repositories.
var sshUsers = []string{"labgit", "labother"}

const sshUID = 64023

// startSSH serves DIR/ssh/repos with OpenSSH's server. It accepts the keys in
// DIR/ssh/authorized_keys, which tests write. The host keys are in
// DIR/ssh/NAME.pub.
func (w *world) startSSH() error {
	if w.sshd == "" {
		return nil
	}
	dir := filepath.Join(w.state, "ssh")
	if err := createRepository(filepath.Join(dir, "repos"), "demo.git"); err != nil {
		return err
	}
	err := filepath.WalkDir(filepath.Join(dir, "repos"), func(p string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(p, sshUID, sshUID))
	})
	if err != nil {
		return fmt.Errorf("change the repositories' owner: %w", err)
	}
	keys := filepath.Join(dir, "authorized_keys")
	if err := os.WriteFile(keys, nil, 0o644); err != nil {
		return fmt.Errorf("create the authorized keys file: %w", err)
	}
	for _, s := range sshSites {
		if err := w.startSSHD(dir, s); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) startSSHD(dir string, s site) error {
	key, conf := filepath.Join(dir, s.name), filepath.Join(dir, s.name+".conf")
	if err := createHostKey(key); err != nil {
		return err
	}
	lines := []string{
		"HostKey " + key, "AuthorizedKeysFile " + filepath.Join(dir, "authorized_keys"), "AllowUsers " + strings.Join(sshUsers, " "),
		"StrictModes no", // tests own the authorized keys file
		"AuthenticationMethods publickey", "UsePAM no", "PidFile none", "LogLevel VERBOSE", "UseDNS no",
		"AllowTcpForwarding no", "X11Forwarding no", "PermitTTY no", "MaxStartups 50",
	}
	for _, port := range sshPorts {
		lines = append(lines, "ListenAddress "+netip.AddrPortFrom(s.addr, port).String())
	}
	// Since OpenSSH 9.8 the server consists of several programs.
	for option, file := range map[string]string{"SshdSessionPath": "sshd-session", "SshdAuthPath": "sshd-auth"} {
		if p := filepath.Join(w.sshd, "usr/lib/openssh", file); exists(p) {
			lines = append(lines, option+" "+p)
		}
	}
	if err := os.WriteFile(conf, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("configure sshd: %w", err)
	}
	cmd := exec.Command(filepath.Join(w.sshd, "usr/sbin/sshd"), "-D", "-f", conf, "-E", filepath.Join(dir, s.name+".log"))
	libraries, err := filepath.Glob(filepath.Join(w.sshd, "usr/lib/*-linux-gnu*"))
	if err != nil {
		return err
	}
	if more, err := filepath.Glob(filepath.Join(w.sshd, "lib/*-linux-gnu*")); err == nil {
		libraries = append(libraries, more...)
	}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LD_LIBRARY_PATH=" + strings.Join(libraries, ":")}
	cmd.Stderr = w.stderr.Writer()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start sshd: %w", err)
	}
	w.closers = append(w.closers, process{cmd.Process})
	w.run("sshd of "+s.name, func() error { return errors.Join(errors.New("sshd exited"), cmd.Wait()) })
	return w.waitListening(netip.AddrPortFrom(s.addr, sshPorts[len(sshPorts)-1]))
}

// sshdStartTimeout bounds the wait for sshd to listen.
const sshdStartTimeout = 10 * time.Second

// waitListening waits until a server listens at the address. It stops waiting if
// the world has failed.
func (w *world) waitListening(addr netip.AddrPort) error {
	for end := time.Now().Add(sshdStartTimeout); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.Dial("tcp", addr.String())
		if err == nil {
			return conn.Close()
		}
		if len(w.failed) > 0 || time.Now().After(end) {
			return fmt.Errorf("wait for sshd: %w", err)
		}
	}
}

// process adapts a process to io.Closer.
type process struct{ p *os.Process }

func (p process) Close() error { return p.p.Signal(os.Interrupt) }

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// createHostKey creates a private key and FILE.pub, its public key, if the private
// key does not exist.
func createHostKey(file string) error {
	if exists(file) {
		return nil
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return fmt.Errorf("create host key: %w", err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		return fmt.Errorf("create host key: %w", err)
	}
	host, err := ssh.NewPublicKey(public)
	if err != nil {
		return fmt.Errorf("create host key: %w", err)
	}
	return errors.Join(writeFileAtomic(file+".pub", ssh.MarshalAuthorizedKey(host), 0o644), writeFileAtomic(file, pem.EncodeToMemory(block), 0o600))
}
