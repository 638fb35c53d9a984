// Package policy bounds what users of sudo may do with bottle. Somebody whom sudo lets
// run bottle must not become root by it: bottle's file /etc/bottle/policy.yaml, written
// by root, says what they may request, and /etc/bottle/config.yaml which containerd,
// directories and registries everybody uses.
//
// [For] returns the [Rules] of a caller. Plans, launches, builds and changes of a running
// bottle's policy ask them before anything is done; a refusal names the key of the policy
// and what to do. Root is not bound. The package decides and never acts.
package policy

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/hostconfig"
	"github.com/bot-bottle/bottle/internal/rootonly"
	"github.com/bot-bottle/bottle/manifest"
)

// Dir is the directory of bottle's system configuration.
const Dir = hostconfig.SystemDir

// Names of the files in Dir.
const (
	File       = hostconfig.PolicyFile
	ConfigFile = hostconfig.SystemFile
)

// Policy is the content of a policy file. The zero Policy is what applies without a file,
// and the values of keys that a file does not have.
type Policy struct {
	// Path is that of the file; empty: there is none. SHA256 is the hash of its content.
	Path   string `json:"path,omitempty"`
	SHA256 string `json:"sha256,omitempty"`

	Runtimes []string `json:"runtimes"` // of agents; empty: runsc
	Proxies  Proxies  `json:"proxies"`
	// Images are patterns of the images that may be run: NAME, NAME:TAG, NAME@DIGEST or
	// PREFIX/*, normalised. Nil: all.
	Images []string `json:"images"`
	Egress Egress   `json:"egress"`
	// Limits are the maximum of each limit; zero: none.
	Limits         manifest.Limits `json:"limits"`
	BottlesPerUser int             `json:"bottles_per_user"` // 0: no limit
	Builds         Builds          `json:"builds"`
	NoLearn        bool            `json:"no_learn"`
	NoKeptWork     bool            `json:"no_kept_work"` // no workspaces, which outlive their bottles
	// Secrets are the sources from which secrets may come, of SecretSources. Nil: all.
	Secrets []string `json:"secrets"`
}

// Proxies says which egress proxies may be used.
type Proxies struct {
	Kinds []string `json:"kinds"` // empty: all
	// Images are names of pipelock's images with their digests, normalised. The content
	// of any other image is the user's choice, and so is what it lets through.
	Images []string `json:"images"`
}

// Egress bounds the egress policies of bottles.
type Egress struct {
	Never  []string `json:"never"`   // denied to every bottle, in the form of a manifest's deny
	AtMost []string `json:"at_most"` // in the form of a manifest's allow; nil: everything
	// Private bounds allow_private, in the same form.
	Private []string `json:"private"`
}

// Builds bounds the builds of images.
type Builds struct {
	Forbidden   bool `json:"forbidden"`
	HostNetwork bool `json:"host_network"` // steps may use the host's network
	// AtMost bounds what steps reach through their proxy; nil: egress.at_most does.
	AtMost []string `json:"at_most"`
}

// Sources of secrets.
const (
	SecretEnvironment = "environment"  // variables of the caller
	SecretFile        = "file"         // files that the manifest names, and stored logins
	SecretCommand     = "command"      // programs of the host that print them
	SecretPrompt      = "prompt"       // questions
	SecretCommandLine = "command_line" // -e, --env-file, --env-from-fd
	SecretSSHAgent    = "ssh_agent"    // keys that sign on the host
	SecretSSHCopy     = "ssh_copy"     // keys that are copied into the bottle
	SecretBuild       = "build"        // secrets of builds
)

// SecretSources are the values of secrets.
var SecretSources = []string{
	SecretBuild, SecretCommand, SecretCommandLine, SecretEnvironment, SecretFile, SecretPrompt, SecretSSHAgent, SecretSSHCopy,
}

// Schema is the policy's JSON Schema.
//
//go:embed schema/policy.schema.json
var Schema []byte

// Load reads the policy in a directory. Without a file it returns the zero Policy.
func Load(dir string) (*Policy, error) {
	path := filepath.Join(dir, File)
	data, err := rootonly.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Policy{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the administrator's policy: %w", err)
	}
	p, err := Parse(path, data)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// hash returns the SHA-256 of a file's content in hexadecimal.
func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
