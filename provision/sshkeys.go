package provision

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/sshagent"
)

// ResolveSSH finds the host keys and the caller's keys of ssh entries. dir is the
// manifest's directory, for relative paths. With noInput, a key that needs a
// passphrase is an error. The error reports all entries that cannot be used.
func ResolveSSH(c caller.Caller, dir string, hosts []manifest.SSHHost, noInput bool) ([]SSHAccess, error) {
	var out []SSHAccess
	var problems hint.Problems
	r := sshResolver{caller: c, dir: dir, noInput: noInput, files: map[string]*sshKey{}}
	for _, h := range hosts {
		hostKeys, err := r.hostKeys(h)
		problems.Add(err)
		if h.IdentityFile != "" {
			h.IdentityFile = r.caller.Path(h.IdentityFile, r.dir)
		}
		keys, kerr := r.keys(h)
		if kerr != nil {
			problems.Add(hint.Wrap(kerr, "ssh key of "+h.Host))
		}
		if err != nil || kerr != nil {
			continue
		}
		h.Keys = fingerprints(keys)
		for _, k := range hostKeys {
			if forge := sshagent.Forge(k); forge != "" && h.Mode == manifest.SSHAgent {
				h.Forge = forge
			}
		}
		out = append(out, SSHAccess{h, hostKeys, keys})
	}
	return out, problems.Err()
}

// fingerprints returns the fingerprints of the keys with a known public key.
func fingerprints(keys []*sshKey) []string {
	out := []string{}
	for _, k := range keys {
		if k.public != nil {
			out = append(out, sshagent.Fingerprint(k.public))
		}
	}
	return out
}

// sshResolver finds host keys and keys of the caller.
type sshResolver struct {
	caller  caller.Caller
	dir     string // of the manifest
	noInput bool
	files   map[string]*sshKey // already read
	own     []sshagent.PublicKey
	asked   bool // whether own is the list of the caller's agent
}

func (r *sshResolver) hostKeys(h manifest.SSHHost) ([]sshagent.PublicKey, error) {
	if h.HostKey != "" {
		key, err := sshagent.ParsePublic([]byte(h.HostKey))
		if err != nil {
			return nil, fmt.Errorf("HostKey of %s: %w", h.Host, err)
		}
		return []sshagent.PublicKey{key}, nil
	}
	var text []byte
	for _, file := range []string{filepath.Join(r.caller.Home, ".ssh", "known_hosts"), "/etc/ssh/ssh_known_hosts"} {
		data, err := r.caller.ReadRegular(file, maxKnownHosts)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("host key of %s: %w", h.Host, err)
		}
		text = append(append(text, data...), '\n')
	}
	keys, err := sshagent.KnownHosts(text, h.HostName, h.Port)
	if err == nil && len(keys) == 0 {
		err = &hint.Error{
			Err:  fmt.Errorf("unknown host key of %s: %s is not in your ~/.ssh/known_hosts", h.Host, h.Destination()),
			Hint: fmt.Sprintf("connect once yourself (ssh -p %d %s) and compare the key, or set HostKey in the entry", h.Port, h.HostName),
		}
	}
	return keys, err
}

// keys returns the keys that may be used for a host: that of IdentityFile; for a .pub file
// the matching key in the caller's ssh agent; without a file, all keys in that agent.
func (r *sshResolver) keys(h manifest.SSHHost) ([]*sshKey, error) {
	switch {
	case h.IdentityFile == "" && h.Mode == manifest.SSHCopy:
		return nil, errors.New("missing IdentityFile, which mode: copy needs")
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
		return nil, fmt.Errorf("%s is a public key, and mode: copy needs the private key", h.IdentityFile)
	}
	text, err := r.caller.ReadRegular(h.IdentityFile, maxKey)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("missing file %s", h.IdentityFile)
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
			Err:  fmt.Errorf("%s is a public key, and your ssh agent does not have the private key", h.IdentityFile),
			Hint: "add it with ssh-add, pass SSH_AUTH_SOCK through sudo (--preserve-env=SSH_AUTH_SOCK), or use the private key file",
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
		return nil, fmt.Errorf("%s is not a supported private key", h.IdentityFile)
	}
	if own, err := r.ownAgent(); err == nil && key.public != nil && holds(own, key.public) {
		return r.upstream(h.IdentityFile, key.public), nil
	}
	if r.noInput {
		return nil, &hint.Error{
			Err:  fmt.Errorf("cannot ask for the passphrase of %s with --no-input", h.IdentityFile),
			Hint: "add the key to your ssh agent with ssh-add, or omit --no-input",
		}
	}
	return key, nil
}

// copied marks a key that is copied into the bottle instead of used by the agent.
type copied struct{ sshagent.Signer }

func (r *sshResolver) upstream(file string, public sshagent.PublicKey) *sshKey {
	return &sshKey{file: file, public: public, signer: r.agent().Signer(public)}
}

func (r *sshResolver) agent() sshagent.Upstream {
	socket, _ := r.caller.Getenv("SSH_AUTH_SOCK")
	return sshagent.Upstream{Socket: socket, User: r.caller.User()}
}

// ownAgent lists the keys of the caller's ssh agent, if there is one.
func (r *sshResolver) ownAgent() ([]sshagent.PublicKey, error) {
	own := r.agent()
	if r.asked || own.Socket == "" {
		return r.own, nil
	}
	var err error
	r.own, err = own.List()
	r.asked = err == nil
	return r.own, err
}

func holds(keys []sshagent.PublicKey, key sshagent.PublicKey) bool {
	return slices.ContainsFunc(keys, func(k sshagent.PublicKey) bool { return bytes.Equal(k.Marshal(), key.Marshal()) })
}
