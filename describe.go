package bottle

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
)

// Description is an agent and its bottle as the manifest says and with what
// holds where it says nothing: paths and defaults are filled in, and no host,
// file or variable was looked at. It has no values of variables.
type Description struct {
	Agent        string            `json:"agent"`
	Bottle       string            `json:"bottle"`
	Image        string            `json:"image"` // normalised
	Build        *BuildDescription `json:"build,omitempty"`
	Command      []string          `json:"command"` // empty: the image's
	Env          []EnvVar          `json:"env"`     // in the manifest's order, without values
	Egress       Egress            `json:"egress"`
	SSH          []SSHHost         `json:"ssh"`
	Git          *Git              `json:"git,omitempty"`
	Limits       Limits            `json:"limits"`
	PromptBytes  int               `json:"prompt_bytes"`
	Skills       []string          `json:"skills"`
	ManifestPath string            `json:"manifest"`
}

// BuildDescription is a build without the values of its arguments.
type BuildDescription struct {
	Context    string   `json:"context"`    // absolute
	Dockerfile string   `json:"dockerfile"` // as written; empty: Dockerfile
	Target     string   `json:"target,omitempty"`
	Args       []string `json:"args"`    // names
	Secrets    []string `json:"secrets"` // names
}

// Describe tells what one agent is, or, without a name, what each is in the
// order of their names.
func (m *Manifest) Describe(agent string, c caller.Caller) ([]Description, error) {
	names := sortedKeys(m.Agents)
	if agent != "" {
		names = []string{agent}
	}
	out := []Description{}
	for _, name := range names {
		a, b, err := m.agent(name)
		if err != nil {
			return nil, err
		}
		d, err := m.describe(name, a, b, c)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func (m *Manifest) describe(name string, a *AgentConfig, b *BottleConfig, c caller.Caller) (Description, error) {
	dir := filepath.Dir(m.Path)
	image := b.Image
	if image == "" {
		image = DefaultImage
	}
	ref, err := imageref.Normalize(image)
	if err != nil {
		return Description{}, fmt.Errorf("the image %q of %s: %w", image, a.Bottle, err)
	}
	d := Description{
		Agent: name, Bottle: a.Bottle, ManifestPath: m.Path, Image: ref, Git: b.Git, PromptBytes: len(a.Prompt),
		Command: append([]string{}, a.Command...), Skills: append([]string{}, a.Skills...), SSH: []SSHHost{}, Env: []EnvVar{},
		Egress: Egress{Allow: sortedSet(b.Egress.Allow), AllowPrivate: sortedSet(b.Egress.AllowPrivate)},
		Limits: b.Limits.orDefault(),
	}
	for _, v := range b.Env {
		d.Env = append(d.Env, v.describe(c, dir))
	}
	for _, h := range b.SSH {
		if h.IdentityFile != "" {
			h.IdentityFile = c.Path(h.IdentityFile, dir)
		}
		d.SSH = append(d.SSH, h)
	}
	if s := b.Build; s != nil {
		d.Build = &BuildDescription{
			Context: c.Path(s.Context, dir), Dockerfile: s.Dockerfile, Target: s.Target,
			Args: sortedKeys(s.Args), Secrets: sortedKeys(s.Secrets),
		}
	}
	return d, nil
}

func (v EnvConfig) describe(c caller.Caller, dir string) EnvVar {
	switch {
	case v.Literal != nil:
		return EnvVar{Name: v.Name, Source: SourceLiteral}
	case v.Prompt != "":
		return EnvVar{Name: v.Name, Source: SourcePrompt, Ask: v.Prompt}
	case v.File != "":
		return EnvVar{Name: v.Name, Source: SourceFile, From: c.Path(v.File, dir)}
	}
	return EnvVar{Name: v.Name, Source: SourceForwarded, From: v.From}
}

// orDefault fills in what a manifest leaves out.
func (l Limits) orDefault() Limits {
	if l.Memory == 0 {
		l.Memory = defaultMemory
	}
	if l.Pids == 0 {
		l.Pids = defaultPids
	}
	if l.Disk == 0 {
		l.Disk = defaultDisk
	}
	return l
}

// Starter is a manifest to begin with.
//
//go:embed starter.yaml
var Starter []byte

// ErrManifestExists is wrapped when there is a manifest already.
var ErrManifestExists = errors.New("there is a manifest already")

// WriteStarter writes a manifest to begin with, and returns its path. An empty
// path is bottle.yaml in the caller's folder, which must have no manifest of
// any name. Under sudo the file is the invoking user's. Their ~/.config/bottle is
// made if it is missing, and no other folder.
func WriteStarter(path string, c caller.Caller) (_ string, err error) {
	if path == "" {
		for _, name := range manifestNames {
			if _, err := os.Lstat(filepath.Join(c.WorkDir, name)); err == nil {
				return "", exists(filepath.Join(c.WorkDir, name))
			}
		}
		path = filepath.Join(c.WorkDir, manifestNames[0])
	}
	if _, err := os.Stat(filepath.Dir(path)); err != nil && filepath.Dir(path) == filepath.Join(c.Home, homeManifests) {
		if err := c.MakeInHome(homeManifests); err != nil {
			return "", fmt.Errorf("write a manifest: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return "", exists(path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return "", &hint.Error{Err: fmt.Errorf("write a manifest: %w", err), Hint: "make its folder first: mkdir -p " + filepath.Dir(path)}
	}
	if err != nil {
		return "", fmt.Errorf("write a manifest: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(Starter); err != nil {
		return "", fmt.Errorf("write a manifest: %w", err)
	}
	if c.UID == os.Getuid() {
		return path, nil
	}
	if err := f.Chown(c.UID, c.GID); err != nil {
		return "", fmt.Errorf("give the manifest to you: %w", err)
	}
	return path, nil
}

func exists(path string) error {
	return &hint.Error{
		Err:  fmt.Errorf("%w: %s", ErrManifestExists, path),
		Hint: "edit that one, or move it away",
	}
}
