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

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/rootfile"
)

// Bounds of one skill. A skill is text and a few scripts; what is larger is a
// mistake, such as a link to a folder of data.
const (
	maxSkillBytes = 16 << 20
	maxSkillFiles = 1000
	maxSkillDepth = 12
)

// Skills are the skills of an agent as they were read: later changes of the user's
// files do not reach the bottle.
type Skills struct {
	Names    []string
	Files    []rootfile.File // paths begin with the skill's name
	Warnings []string
}

// ReadSkills reads skills by name from the invoking user's ~/.claude/skills, with the
// rights of that user. The error reports all skills that cannot be read.
func ReadSkills(c caller.Caller, list []string) (Skills, error) {
	out := Skills{Names: []string{}}
	var problems hint.Problems
	for _, name := range list {
		if slices.Contains(out.Names, name) {
			continue
		}
		dir := filepath.Join(c.Home, ".claude", "skills", name)
		s := skill{name: name, caller: c}
		if err := s.read(dir); err != nil {
			problems.Add(err)
			continue
		}
		if !slices.ContainsFunc(s.files, func(f rootfile.File) bool { return strings.EqualFold(f.Path, name+"/SKILL.md") }) {
			out.Warnings = append(out.Warnings, fmt.Sprintf("skill '%s' has no SKILL.md in %s: Claude Code will not know it", name, dir))
		}
		out.Names = append(out.Names, name)
		out.Files = append(out.Files, s.files...)
	}
	return out, problems.Err()
}

// skill is one that is being read. Its links are followed, and only within it:
// os.Root refuses those that lead out.
type skill struct {
	name   string
	caller caller.Caller
	root   *os.Root
	files  []rootfile.File
	bytes  int64
}

func (s *skill) read(dir string) error {
	// The skill itself may be a link, to where its user keeps it.
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
		return fmt.Errorf("skill '%s' not found at %s; create it there, then run again", s.name, dir)
	}
	var err error
	if s.root, err = os.OpenRoot(dir); err != nil {
		return fmt.Errorf("skill '%s': %w", s.name, err)
	}
	defer func() { _ = s.root.Close() }()
	return s.folder(".", 0)
}

func (s *skill) folder(name string, depth int) error {
	if depth > maxSkillDepth {
		return s.bad(name, fmt.Errorf("more than %d folders deep, or a link to a folder above it", maxSkillDepth))
	}
	fi, err := s.root.Stat(name)
	if err != nil {
		return s.bad(name, err)
	}
	if err := s.readable(fi); err != nil {
		return s.bad(name, err)
	}
	if err := s.add(name, fs.ModeDir|0o755, nil); err != nil {
		return err
	}
	entries, err := fs.ReadDir(s.root.FS(), name)
	if err != nil {
		return s.bad(name, err)
	}
	for _, e := range entries {
		// A repository's history is no part of a skill, and its configuration
		// may hold credentials.
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
		return s.folder(name, depth+1)
	case !fi.Mode().IsRegular():
		return s.bad(name, errors.New("no regular file"))
	}
	if err := s.readable(fi); err != nil {
		return s.bad(name, err)
	}
	data, err := s.content(name)
	if err != nil {
		return s.bad(name, err)
	}
	return s.add(name, 0o644|fi.Mode()&0o111, data)
}

func (s *skill) content(name string) ([]byte, error) {
	// What was a file a moment ago may be a FIFO now.
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
		return fmt.Errorf("skill '%s' is larger than %s or has more than %d files: take out what the agent does not need",
			s.name, units.BytesSize(maxSkillBytes), maxSkillFiles)
	}
	return nil
}

// readable refuses what the invoking user could not read: bottle is root, and
// the folder may be one that others write to.
func (s *skill) readable(fi fs.FileInfo) error {
	st, ok := fi.Sys().(*syscall.Stat_t)
	perm, need := fi.Mode().Perm(), fs.FileMode(0o4)
	switch {
	case !ok:
		return errors.New("its owner is not known")
	case s.caller.UID == 0:
		return nil
	case int(st.Uid) == s.caller.UID:
		need = 0o400
	case int(st.Gid) == s.caller.GID:
		need = 0o040
	}
	if perm&need == 0 {
		return errors.New("you may not read it")
	}
	return nil
}

func (s *skill) bad(name string, err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if strings.Contains(err.Error(), "escapes") { // os.Root exports no error for it
		return &hint.Error{
			Err:  fmt.Errorf("skill '%s': the link %s leads out of the skill", s.name, name),
			Hint: "put what it points to into the skill",
		}
	}
	return fmt.Errorf("skill '%s': %s: %w", s.name, name, err)
}

// skillFiles are the files of skills in their directory inside.
func skillFiles(dir string, files []rootfile.File) []rootfile.File {
	var out []rootfile.File
	for _, f := range files {
		f.Path = path.Join(dir, f.Path)
		out = append(out, f)
	}
	return out
}
