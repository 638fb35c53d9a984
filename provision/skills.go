package provision

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/docker/go-units"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/rootfile"
)

// Bounds of one skill. A skill is text and a few scripts; anything larger is a mistake,
// such as a link to a data directory.
const (
	maxSkillBytes = 16 << 20
	maxSkillFiles = 1000
	maxSkillDepth = 12
)

// Skills are the skills of an agent as they were read. Later changes of the user's files
// do not reach the bottle.
type Skills struct {
	Names    []string
	Files    []rootfile.File // paths begin with the skill's name
	Warnings []string
}

// ReadSkills reads skills by name from the invoking user's directory of the kind's
// skills, such as ~/.claude/skills, with the rights of that user. The error reports all
// skills that cannot be read.
func ReadSkills(c caller.Caller, k *agents.Kind, list []string) (Skills, error) {
	out := Skills{Names: []string{}}
	var problems hint.Problems
	dir, ok := SkillsDir(k, c.Home)
	if !ok && len(list) > 0 {
		return out, &hint.Error{Err: fmt.Errorf("unexpected skills: %s has none", k.Title), Hint: "remove skills from the agent"}
	}
	for _, name := range list {
		if slices.Contains(out.Names, name) {
			continue
		}
		dir := filepath.Join(dir, name)
		s := skill{name: name}
		if err := c.Do(func() error { return s.read(dir) }); err != nil {
			problems.Add(err)
			continue
		}
		if !slices.ContainsFunc(s.files, func(f rootfile.File) bool { return strings.EqualFold(f.Path, name+"/SKILL.md") }) {
			out.Warnings = append(out.Warnings, fmt.Sprintf("skill '%s' has no SKILL.md in %s: %s will ignore it", name, dir, k.Title))
		}
		out.Names = append(out.Names, name)
		out.Files = append(out.Files, s.files...)
	}
	return out, problems.Err()
}

// skill is a skill that is being read. Symbolic links are followed only within it: os.Root
// rejects links that lead out.
type skill struct {
	name  string
	root  *os.Root
	files []rootfile.File
	bytes int64
}

func (s *skill) read(dir string) error {
	// The skill itself may be a link to another directory of the user.
	fi, err := os.Stat(dir)
	if errors.Is(err, fs.ErrPermission) {
		return s.bad(dir, err)
	}
	if err != nil || !fi.IsDir() {
		return &hint.Error{Err: fmt.Errorf("missing skill '%s': no directory %s", s.name, dir), Hint: "create it there"}
	}
	if s.root, err = os.OpenRoot(dir); err != nil {
		return s.bad(dir, err)
	}
	defer func() { _ = s.root.Close() }()
	return s.directory(".", 0)
}

func (s *skill) directory(name string, depth int) error {
	if depth > maxSkillDepth {
		return s.bad(name, fmt.Errorf("more than %d directories deep, or a link to a parent directory", maxSkillDepth))
	}
	if err := s.add(name, fs.ModeDir|0o755, nil); err != nil {
		return err
	}
	entries, err := fs.ReadDir(s.root.FS(), name)
	if err != nil {
		return s.bad(name, err)
	}
	for _, e := range entries {
		// A repository's history is not part of a skill, and its configuration
		// may contain credentials.
		if e.Name() == ".git" {
			continue
		}
		if err := s.entry(path.Join(name, e.Name()), depth); err != nil {
			return err
		}
	}
	return nil
}

func (s *skill) entry(name string, depth int) error {
	fi, err := s.root.Stat(name)
	switch {
	case err != nil:
		return s.bad(name, err)
	case fi.IsDir():
		return s.directory(name, depth+1)
	case !fi.Mode().IsRegular():
		return s.bad(name, errors.New("not a regular file"))
	}
	data, err := s.content(name)
	if err != nil {
		return s.bad(name, err)
	}
	return s.add(name, 0o644|fi.Mode()&0o111, data)
}

func (s *skill) content(name string) ([]byte, error) {
	// The file may have been replaced by a FIFO.
	f, err := s.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, maxSkillBytes+1))
}

func (s *skill) add(name string, mode fs.FileMode, data []byte) error {
	s.files = append(s.files, rootfile.File{Path: path.Join(s.name, name), Mode: mode, Data: data})
	if s.bytes += int64(len(data)); s.bytes > maxSkillBytes || len(s.files) > maxSkillFiles {
		return &hint.Error{
			Err:  fmt.Errorf("skill '%s' is larger than %s or has more than %d files", s.name, units.BytesSize(maxSkillBytes), maxSkillFiles),
			Hint: "remove files that the agent does not need",
		}
	}
	return nil
}

func (s *skill) bad(name string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, fs.ErrPermission) {
		err = errors.New("not readable by you")
	}
	if strings.Contains(err.Error(), "escapes") { // os.Root exports no error for it
		return &hint.Error{
			Err:  fmt.Errorf("skill '%s': the link %s leads out of the skill", s.name, name),
			Hint: "copy its target into the skill",
		}
	}
	return fmt.Errorf("skill '%s': %s: %w", s.name, name, err)
}

// skillFiles returns the files of skills with their paths inside.
func skillFiles(dir string, files []rootfile.File) []rootfile.File {
	var out []rootfile.File
	for _, f := range files {
		f.Path = path.Join(dir, f.Path)
		out = append(out, f)
	}
	return out
}
