package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// Keys of the ConfigMap with the agent's files.
const (
	agentKey  = "agent.json"
	promptKey = "prompt"
	caKey     = "ca.pem"
)

// description is what the files in the agent's home are computed from. That is done in the
// agent's container: only there are the image and its own settings known.
type description struct {
	Kind       string        `json:"kind,omitempty"` // of package agents; empty: the default
	Unattended bool          `json:"unattended,omitempty"`
	Git        *manifest.Git `json:"git,omitempty"`
	// Variables are the agent's; values are those of literals only.
	Variables []variable `json:"variables,omitempty"`
	Skills    []skill    `json:"skills,omitempty"`
	// MCP are the MCP servers, with their variables.
	MCP []agents.Server `json:"mcp,omitempty"`
}

type variable struct {
	Name    string `json:"name"`
	Source  string `json:"source"`
	Literal string `json:"literal,omitempty"`
}

// skill is a file or directory of a skill.
type skill struct {
	Path string `json:"path"`
	Mode uint32 `json:"mode"`
	Dir  bool   `json:"dir,omitempty"`
	Key  string `json:"key,omitempty"` // of the ConfigMap
}

func describe(kind string, a provision.Agent) description {
	d := description{Kind: kind, Unattended: a.Unattended, Git: a.Git, MCP: a.MCP}
	if a.Kind != nil {
		d.Kind = a.Kind.Name
	}
	for _, v := range a.Variables {
		d.Variables = append(d.Variables, variable{Name: v.Name, Source: v.Source, Literal: v.Literal})
	}
	return d
}

// Programs are what the agent's container runs: bottle itself, and the guest program.
type Programs struct {
	Bottle string // path
	// Guest opens the guest program; nil: Bottle is used.
	Guest func() (io.ReadCloser, error)
}

// CopyFiles fills the agent's guest directory with the files of a ConfigMap that is mounted
// at from, and with the programs.
func CopyFiles(from, to string, p Programs) error {
	d, err := readDescription(from)
	if err != nil {
		return err
	}
	bottle := func() (io.ReadCloser, error) { return os.Open(p.Bottle) }
	guest := p.Guest
	if guest == nil {
		guest = bottle
	}
	config := func(key string) func() (io.ReadCloser, error) {
		return func() (io.ReadCloser, error) { return os.Open(filepath.Join(from, key)) }
	}
	type file struct {
		name string
		mode fs.FileMode
		open func() (io.ReadCloser, error)
	}
	files := []file{
		{filepath.Base(program), 0o755, bottle},
		{filepath.Base(provision.GuestInit), 0o755, guest},
		{agentKey, 0o644, config(agentKey)},
	}
	for key, name := range map[string]string{promptKey: provision.PromptFile, caKey: provision.GuestCA} {
		if _, err := os.Stat(filepath.Join(from, key)); err == nil {
			files = append(files, file{filepath.Base(name), 0o644, config(key)})
		}
	}
	for _, s := range d.Skills {
		if !s.Dir {
			files = append(files, file{s.Key, 0o644, config(s.Key)})
		}
	}
	if err := os.Mkdir(filepath.Join(to, filepath.Base(provision.GuestRun)), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err // another file system is mounted on it
	}
	for _, f := range files {
		if err := copyFile(filepath.Join(to, f.name), f.mode, f.open); err != nil {
			return fmt.Errorf("write the agent's files: %w", err)
		}
	}
	return nil
}

func copyFile(to string, mode fs.FileMode, open func() (io.ReadCloser, error)) (err error) {
	in, err := open()
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Chmod(mode) // the umask may have cleared bits
}

func readDescription(dir string) (d description, err error) {
	data, err := os.ReadFile(filepath.Join(dir, agentKey))
	if err == nil {
		err = json.Unmarshal(data, &d)
	}
	if err != nil {
		return d, fmt.Errorf("read the agent's description: %w", err)
	}
	return d, nil
}

// Trust writes the image's file of authorities with the proxy's authority to out; roots are
// for an image that has none.
func Trust(dir, roots, out string) error {
	ca, err := os.ReadFile(filepath.Join(dir, caKey))
	if err != nil {
		return err
	}
	for _, path := range append(provision.SystemBundles(), roots) {
		bundle, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		return os.WriteFile(out, provision.WithCA(bundle, ca), 0o644)
	}
	return fmt.Errorf("no authorities in %s", roots)
}

// Start writes the files in the agent's home, as the agent's user, and replaces this process
// by the guest program with the command.
func Start(dir string, command []string) error {
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	img := provision.Image{Home: os.Getenv("HOME"), UserHome: os.Getenv("HOME"), WorkDir: wd, Env: os.Environ(), UID: uint32(os.Geteuid())}
	if err := writeHome(dir, img); err != nil {
		return err
	}
	guest := filepath.Join(dir, filepath.Base(provision.GuestInit))
	err = syscall.Exec(guest, append([]string{guest, "exec", "--"}, command...), os.Environ())
	return fmt.Errorf("run %s: %w", guest, err)
}

// writeHome writes what the image's own agent would find in its home on one host.
func writeHome(dir string, img provision.Image) error {
	d, err := readDescription(dir)
	if err != nil {
		return err
	}
	a := provision.Agent{Unattended: d.Unattended, Git: d.Git, MCP: d.MCP}
	if d.Kind != "" {
		kind, ok := agents.Lookup(d.Kind)
		if !ok {
			return fmt.Errorf("unknown kind of agent %q: the image of bottle is of another version", d.Kind)
		}
		a.Kind = kind
	}
	for _, v := range d.Variables {
		a.Variables = append(a.Variables, provision.Variable{Name: v.Name, Source: v.Source, Literal: v.Literal})
	}
	prompt, err := os.ReadFile(filepath.Join(dir, promptKey))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	a.Prompt = string(prompt)
	for _, s := range d.Skills {
		f := rootfile.File{Path: s.Path, Mode: fs.FileMode(s.Mode)}
		if s.Dir {
			f.Mode |= fs.ModeDir
		} else if f.Data, err = os.ReadFile(filepath.Join(dir, s.Key)); err != nil {
			return err
		}
		a.Skills = append(a.Skills, f)
	}
	for _, f := range a.HomeFiles(img) {
		if err := writeHomeFile(f); err != nil {
			return fmt.Errorf("write %s: %w", f.Path, err)
		}
	}
	return nil
}

// writeHomeFile writes a file with the rights of the agent, who may do the same. A link that
// exists is kept.
func writeHomeFile(f rootfile.File) error {
	if f.Mode.IsDir() {
		return os.MkdirAll(f.Path, f.Mode.Perm())
	}
	if err := os.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
		return err
	}
	if f.Link != "" {
		err := os.Symlink(f.Link, f.Path)
		if to, lerr := os.Readlink(f.Path); lerr == nil && to == f.Link {
			return nil
		}
		return err
	}
	if f.Edit != nil {
		old, err := os.ReadFile(f.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if f.Data, err = f.Edit(old); err != nil {
			return err
		}
	}
	if err := os.WriteFile(f.Path, f.Data, f.Mode.Perm()); err != nil {
		return err
	}
	return os.Chmod(f.Path, f.Mode.Perm())
}
