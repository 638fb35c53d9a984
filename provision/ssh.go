package provision

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/sshagent"
)

// Paths of ssh inside.
const (
	guestSSH       = GuestDir + "/ssh"
	GuestSSHSocket = GuestRun + "/ssh-agent.sock"
)

// Bounds of files that are read, in bytes.
const (
	maxKey        = 64 << 10
	maxKnownHosts = 4 << 20
)

// SSHAccess is an entry of a bottle's ssh list with the keys that it resolves to.
type SSHAccess struct {
	Host     manifest.SSHHost
	hostKeys []sshagent.PublicKey
	keys     []*sshKey
}

// sshKey is a key of the caller.
type sshKey struct {
	file   string             // empty: only in the caller's ssh agent
	public sshagent.PublicKey // nil: locked, in a format that hides it
	signer sshagent.Signer    // nil: locked
	text   secret.Value       // of the private key file, if it was read
}

// ErrPassphrase is wrapped by UnlockKey if the passphrase is wrong.
var ErrPassphrase = sshagent.ErrPassphrase

// HostKeys returns the host keys that are accepted from the host.
func (a SSHAccess) HostKeys() []sshagent.PublicKey { return a.hostKeys }

// LockedKeys lists the files of private keys that need a passphrase before launch.
func LockedKeys(list []SSHAccess) []string {
	var files []string
	for _, a := range list {
		for _, k := range a.keys {
			if k.signer == nil && !slices.Contains(files, k.file) {
				files = append(files, k.file)
			}
		}
	}
	return files
}

// UnlockKey opens a private key of the entries. The passphrase is not kept. The error
// wraps ErrPassphrase if it is wrong.
func UnlockKey(list []SSHAccess, file string, passphrase secret.Value) error {
	for _, a := range list {
		for _, k := range a.keys {
			if k.file != file || k.signer != nil {
				continue
			}
			var err error
			if k.public, k.signer, err = sshagent.ParsePrivate([]byte(k.text.Reveal()), []byte(passphrase.Reveal())); err != nil {
				return fmt.Errorf("unlock the ssh key %s: %w", file, err)
			}
		}
	}
	return nil
}

// SSHKeys returns the keys of bottle's ssh agent, each with the hosts that list it. Copied
// and locked keys are excluded.
func SSHKeys(list []SSHAccess) []sshagent.Key {
	var out []sshagent.Key
	for _, a := range list {
		host := sshagent.Host{Name: a.Host.Host, Keys: a.hostKeys, User: a.Host.User, Unbound: a.Host.PubkeyAuthentication == manifest.PubkeyUnbound}
		for _, k := range a.keys {
			if a.Host.Mode == manifest.SSHCopy || k.signer == nil {
				continue
			}
			at := slices.IndexFunc(out, func(o sshagent.Key) bool { return holds([]sshagent.PublicKey{o.Public}, k.public) })
			if at < 0 {
				at = len(out)
				out = append(out, sshagent.Key{Public: k.public, Signer: k.signer})
			}
			out[at].Hosts = append(out[at].Hosts, host)
		}
	}
	return out
}

// sshFiles includes bottle's ssh configuration before that of the image, as ssh uses the
// first of several values. ssh ignores HOME and uses the home in the passwd file.
func sshFiles(userHome string) []rootfile.File {
	dir := path.Join("/", userHome, ".ssh")
	edit := func(old []byte) ([]byte, error) {
		return append([]byte("Include "+guestSSH+"/config\n"), old...), nil
	}
	return []rootfile.File{{Path: dir, Mode: fs.ModeDir | 0o700}, {Path: path.Join(dir, "config"), Mode: 0o600, Edit: edit}}
}

// sshProxy is the ProxyCommand that connects ssh to a host.
var sshProxy = GuestInit + " connect " + segment.ProxyAddrPort().String() + " %h %p"

// sshElsewhere applies to hosts without an entry: the proxy refuses them with a reason and
// logs it. Without it ssh would only report that it cannot resolve the name.
var sshElsewhere = `Host * !localhost !127.* !::1
    ProxyCommand ` + sshProxy + `
    ServerAliveInterval 30
`

// sshGuestFiles returns the included configuration, the host keys, and the public keys of
// the agent, by which ssh selects among them.
func sshGuestFiles(list []SSHAccess) []GuestFile {
	var config, known strings.Builder
	files := []GuestFile{{Name: "ssh", Mode: fs.ModeDir | 0o755}}
	add := func(f GuestFile) {
		f.Name, f.Private = path.Join("ssh", f.Name), true
		files = append(files, f)
	}
	named := map[string]bool{}
	for _, a := range list {
		named[a.Host.Host] = true
	}
	for i, a := range list {
		h := a.Host
		fmt.Fprintf(&config, "Host %s\n", patterns(h, named))
		line := func(key, value string) {
			if value != "" {
				fmt.Fprintf(&config, "    %s %s\n", key, value)
			}
		}
		line("HostName", h.HostName)
		line("User", h.User)
		line("Port", fmt.Sprint(h.Port))
		line("ProxyCommand", sshProxy)
		line("UserKnownHostsFile", guestSSH+"/known_hosts")
		line("StrictHostKeyChecking", "yes")
		line("UpdateHostKeys", "no")
		line("ServerAliveInterval", "30")
		line("ServerAliveCountMax", "4")
		line("ForwardAgent", "no")
		line("IdentitiesOnly", "yes")
		socket := GuestSSHSocket
		if h.Mode == manifest.SSHCopy {
			socket = "none"
		}
		line("IdentityAgent", socket)
		for n, k := range a.keys {
			f := GuestFile{Name: fmt.Sprintf("key-%d-%d.pub", i+1, n+1), Mode: 0o644}
			if h.Mode == manifest.SSHCopy {
				f = GuestFile{Name: fmt.Sprintf("key-%d", i+1), Mode: 0o600, Data: []byte(k.text.Reveal())}
			} else if k.public != nil {
				f.Data = []byte(sshagent.Line(k.public) + "\n")
			}
			line("IdentityFile", guestSSH+"/"+f.Name)
			add(f)
		}
		for _, key := range a.hostKeys {
			fmt.Fprintln(&known, sshagent.KnownHostsLine(h.HostName, h.Port, key))
		}
	}
	config.WriteString(sshElsewhere)
	add(GuestFile{Name: "config", Mode: 0o644, Data: []byte(config.String())})
	add(GuestFile{Name: "known_hosts", Mode: 0o644, Data: []byte(known.String())})
	return files
}

// patterns returns the names that an entry applies to: its Host, and its HostName unless
// that is the Host of another entry or the HostName of an earlier one.
func patterns(h manifest.SSHHost, named map[string]bool) string {
	if named[h.HostName] {
		return h.Host
	}
	named[h.HostName] = true
	return h.Host + " " + h.HostName
}

// SSHWarnings reports keys that leave the caller's control, and entries whose
// signatures may be used elsewhere.
func SSHWarnings(list []SSHAccess) []string {
	var out []string
	for _, a := range list {
		h := a.Host
		if h.Mode == manifest.SSHCopy {
			out = append(out, fmt.Sprintf("the ssh key %s is copied into the bottle for %s: the agent can read it, keep it and use it elsewhere", h.IdentityFile, h.Host))
		}
		if h.PubkeyAuthentication == manifest.PubkeyUnbound {
			user := "any user"
			if h.User != "" {
				user = "user " + h.User
			}
			out = append(out, fmt.Sprintf("PubkeyAuthentication of the ssh host %s is unbound: whoever holds a private key of that host can log in as %s at any server that accepts your key", h.Host, user))
		}
	}
	return out
}
