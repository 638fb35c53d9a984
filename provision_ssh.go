package bottle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/segment"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/sshagent"
)

// What ssh finds inside.
const (
	guestSSH       = guestDir + "/ssh"
	guestSSHSocket = guestRun + "/ssh-agent.sock"
)

// Bounds of files that are read, in bytes.
const (
	maxKey        = 64 << 10
	maxKnownHosts = 4 << 20
)

// sshAccess is what an entry of the plan's ssh list stands for.
type sshAccess struct {
	hostKeys []sshagent.PublicKey
	keys     []*sshKey
}

// sshKey is a key of the caller's.
type sshKey struct {
	file   string             // empty: it is in the caller's own agent only
	public sshagent.PublicKey // nil: locked, in a format that does not show it
	signer sshagent.Signer    // nil: locked
	text   secret.Value       // of the private key's file, if that was read
}

// ErrPassphrase is wrapped by Unlock when the passphrase is not the key's.
var ErrPassphrase = sshagent.ErrPassphrase

// Locked lists the files of private keys that need a passphrase before Launch.
func (p *Plan) Locked() []string {
	var files []string
	for _, a := range p.ssh {
		for _, k := range a.keys {
			if k.signer == nil && !slices.Contains(files, k.file) {
				files = append(files, k.file)
			}
		}
	}
	return files
}

// Unlock opens a private key for this plan. Its passphrase is not kept.
func (p *Plan) Unlock(file string, passphrase secret.Value) error {
	for _, a := range p.ssh {
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

func (p *preparation) ssh(context.Context) error {
	var problems hint.Problems
	r := sshResolver{caller: p.spec.Caller, dir: filepath.Dir(p.plan.Manifest), noInput: p.spec.NoInput, files: map[string]*sshKey{}}
	for _, h := range p.bottle.SSH {
		hostKeys, err := r.hostKeys(h)
		problems.Add(err)
		if h.IdentityFile != "" {
			h.IdentityFile = r.caller.Path(h.IdentityFile, r.dir)
		}
		keys, kerr := r.keys(h)
		if kerr != nil {
			problems.Add(hint.Wrap(kerr, "the ssh key of "+h.Host))
		}
		if err != nil || kerr != nil {
			continue
		}
		h.Keys = fingerprints(keys)
		p.plan.SSH = append(p.plan.SSH, h)
		p.plan.ssh = append(p.plan.ssh, sshAccess{hostKeys, keys})
	}
	return problems.Err()
}

// fingerprints are those of the keys whose public half is known.
func fingerprints(keys []*sshKey) []string {
	out := []string{}
	for _, k := range keys {
		if k.public != nil {
			out = append(out, sshagent.Fingerprint(k.public))
		}
	}
	return out
}

// sshResolver finds keys of hosts and of the caller.
type sshResolver struct {
	caller  caller.Caller
	dir     string // of the manifest
	noInput bool
	files   map[string]*sshKey // that were read
	own     []sshagent.PublicKey
	asked   bool // the caller's agent
}

func (r *sshResolver) hostKeys(h manifest.SSHHost) ([]sshagent.PublicKey, error) {
	if h.HostKey != "" {
		key, err := sshagent.ParsePublic([]byte(h.HostKey))
		if err != nil {
			return nil, fmt.Errorf("the HostKey of %s: %w", h.Host, err)
		}
		return []sshagent.PublicKey{key}, nil
	}
	var text []byte
	for _, file := range []string{filepath.Join(r.caller.Home, ".ssh", "known_hosts"), "/etc/ssh/ssh_known_hosts"} {
		data, err := caller.ReadRegular(file, maxKnownHosts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the host key of %s: %w", h.Host, err)
		}
		text = append(append(text, data...), '\n')
	}
	keys, err := sshagent.KnownHosts(text, h.HostName, h.Port)
	if err == nil && len(keys) == 0 {
		err = &hint.Error{
			Err:  fmt.Errorf("the host key of %s is not known: %s is not in your ~/.ssh/known_hosts", h.Host, h.Destination()),
			Hint: fmt.Sprintf("connect once yourself (ssh -p %d %s) and compare the key, or give the entry its HostKey", h.Port, h.HostName),
		}
	}
	return keys, err
}

// keys are those that may be used at a host: the file's that is named; of a .pub
// file the one that the caller's own agent has; without a file, all that it has.
func (r *sshResolver) keys(h manifest.SSHHost) ([]*sshKey, error) {
	switch {
	case h.IdentityFile == "" && h.Mode == manifest.SSHCopy:
		return nil, errors.New("mode: copy needs an IdentityFile")
	case h.IdentityFile == "":
		own, err := r.ownAgent()
		var keys []*sshKey
		for _, public := range own {
			keys = append(keys, r.upstream("", public))
		}
		return keys, err
	case strings.HasSuffix(h.IdentityFile, ".pub"):
		key, err := r.publicFile(h)
		return []*sshKey{key}, err
	}
	if key := r.files[h.IdentityFile]; key != nil && h.Mode != manifest.SSHCopy {
		return []*sshKey{key}, nil
	}
	key, err := r.privateFile(h)
	if err == nil && h.Mode != manifest.SSHCopy {
		r.files[h.IdentityFile] = key
	}
	return []*sshKey{key}, err
}

func (r *sshResolver) publicFile(h manifest.SSHHost) (*sshKey, error) {
	if h.Mode == manifest.SSHCopy {
		return nil, fmt.Errorf("mode: copy needs the private key, and %s is a public one", h.IdentityFile)
	}
	text, err := caller.ReadRegular(h.IdentityFile, maxKey)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no file %s", h.IdentityFile)
	}
	if err != nil {
		return nil, err
	}
	public, err := sshagent.ParsePublic(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.IdentityFile, err)
	}
	own, err := r.ownAgent()
	if err != nil {
		return nil, err
	}
	if !holds(own, public) {
		return nil, &hint.Error{
			Err:  fmt.Errorf("%s is a public key, and your ssh agent does not have its private one", h.IdentityFile),
			Hint: "add it with ssh-add, let SSH_AUTH_SOCK through sudo (--preserve-env=SSH_AUTH_SOCK), or name the private key's file",
		}
	}
	return r.upstream(h.IdentityFile, public), nil
}

func (r *sshResolver) privateFile(h manifest.SSHHost) (*sshKey, error) {
	text, err := r.caller.ReadPrivate(h.IdentityFile, maxKey)
	if err != nil {
		return nil, err
	}
	key := &sshKey{file: h.IdentityFile, text: secret.New(string(text))}
	key.public, key.signer, err = sshagent.ParsePrivate(text, nil)
	locked := errors.Is(err, sshagent.ErrLocked)
	switch {
	case h.Mode == manifest.SSHCopy && (err == nil || locked):
		key.signer = copied{} // ssh inside asks for the passphrase
		return key, nil
	case err == nil:
		return key, nil
	case !locked:
		return nil, fmt.Errorf("%s is no private key that can be read", h.IdentityFile)
	}
	if own, err := r.ownAgent(); err == nil && key.public != nil && holds(own, key.public) {
		return r.upstream(h.IdentityFile, key.public), nil
	}
	if r.noInput {
		return nil, &hint.Error{
			Err:  fmt.Errorf("%s has a passphrase, which --no-input forbids to ask for", h.IdentityFile),
			Hint: "add it to your ssh agent with ssh-add, or leave out --no-input",
		}
	}
	return key, nil
}

// copied stands for a key that the agent does not have.
type copied struct{ sshagent.Signer }

func (r *sshResolver) upstream(file string, public sshagent.PublicKey) *sshKey {
	socket, _ := r.caller.Getenv("SSH_AUTH_SOCK")
	return &sshKey{file: file, public: public, signer: sshagent.Upstream(socket).Signer(public)}
}

// ownAgent lists what the caller's own agent has, if they have one.
func (r *sshResolver) ownAgent() ([]sshagent.PublicKey, error) {
	socket, ok := r.caller.Getenv("SSH_AUTH_SOCK")
	if r.asked || !ok || socket == "" {
		return r.own, nil
	}
	var err error
	r.own, err = sshagent.Upstream(socket).List()
	r.asked = err == nil
	return r.own, err
}

func holds(keys []sshagent.PublicKey, key sshagent.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k sshagent.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) })
}

// agentKeys are the keys of bottle's own agent, each with the hosts that list it.
func (p *Plan) agentKeys() []sshagent.Key {
	var out []sshagent.Key
	for i, a := range p.ssh {
		host := sshagent.Host{Keys: a.hostKeys, User: p.SSH[i].User}
		for _, k := range a.keys {
			if p.SSH[i].Mode == manifest.SSHCopy || k.signer == nil {
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

// sshFiles have ssh read bottle's configuration before what the image has: of
// two values ssh takes the first. It looks in the home of the passwd file,
// whatever HOME says.
func sshFiles(r *runtime.RootFS) []runtime.File {
	dir := path.Join("/", r.User.Home, ".ssh")
	edit := func(old []byte) ([]byte, error) {
		return append([]byte("Include "+guestSSH+"/config\n"), old...), nil
	}
	return []runtime.File{{Path: dir, Mode: fs.ModeDir | 0o700}, {Path: path.Join(dir, "config"), Mode: 0o600, Edit: edit}}
}

// guestFile is a file of the guest's folder.
type guestFile struct {
	name string
	mode fs.FileMode
	data []byte
}

// sshProxy is the program that has ssh reach a host.
var sshProxy = guestInit + " connect " + segment.ProxyAddrPort().String() + " %h %p"

// sshElsewhere is for hosts that no entry names: the proxy refuses them with its
// reason, and its log tells of it. Without it ssh would say that it cannot resolve
// a name.
var sshElsewhere = `Host * !localhost !127.* !::1
    ProxyCommand ` + sshProxy + `
    ServerAliveInterval 30
`

// sshGuestFiles are what Include leads to, the hosts' keys, and the public halves
// of the agent's keys, by which ssh chooses among them.
func (p *Plan) sshGuestFiles() []guestFile {
	var config, known strings.Builder
	var files []guestFile
	named := map[string]bool{}
	for _, h := range p.SSH {
		named[h.Host] = true
	}
	for i, h := range p.SSH {
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
		socket := guestSSHSocket
		if h.Mode == manifest.SSHCopy {
			socket = "none"
		}
		line("IdentityAgent", socket)
		for n, k := range p.ssh[i].keys {
			f := guestFile{fmt.Sprintf("key-%d-%d.pub", i+1, n+1), 0o644, nil}
			if h.Mode == manifest.SSHCopy {
				f = guestFile{fmt.Sprintf("key-%d", i+1), 0o600, []byte(k.text.Reveal())}
			} else if k.public != nil {
				f.data = []byte(sshagent.Line(k.public) + "\n")
			}
			files = append(files, f)
			line("IdentityFile", guestSSH+"/"+f.name)
		}
		for _, key := range p.ssh[i].hostKeys {
			fmt.Fprintln(&known, sshagent.KnownHostsLine(h.HostName, h.Port, key))
		}
	}
	config.WriteString(sshElsewhere)
	return append(files, guestFile{"config", 0o644, []byte(config.String())}, guestFile{"known_hosts", 0o644, []byte(known.String())})
}

// patterns are the names that an entry is for: its own, and its host's unless
// another entry has that for its own, or one before it for its host's.
func patterns(h manifest.SSHHost, named map[string]bool) string {
	if named[h.HostName] {
		return h.Host
	}
	named[h.HostName] = true
	return h.Host + " " + h.HostName
}

// sshWarnings tell of keys that leave the caller's hands.
func (p *Plan) sshWarnings() []string {
	var out []string
	for _, h := range p.SSH {
		if h.Mode == manifest.SSHCopy {
			out = append(out, fmt.Sprintf("the ssh key %s is copied into the bottle for %s: the agent can read it, keep it and use it elsewhere", h.IdentityFile, h.Host))
		}
	}
	return out
}
