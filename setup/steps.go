package setup

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// state is how a file on the host relates to what setup wants there.
type state int

const (
	stateMissing state = iota
	stateOurs          // setup has written it, and it is unchanged
	stateOthers        // it existed before, or was changed
)

func (p *Plan) state(kind, name string) (state, string) {
	digest, err := digestOf(p.cfg.path(name))
	if digest == "" && err == nil {
		return stateMissing, ""
	}
	if i := p.rec.index(kind, name); i >= 0 && slices.Contains(p.rec.Entries[i].SHA256, digest) {
		return stateOurs, digest
	}
	return stateOthers, digest
}

// file plans a file with these contents, which everybody may read.
func (p *Plan) file(name, text string) {
	want := sha256Of([]byte(text))
	c := Change{Action: ActionCreate, Target: name}
	switch st, digest := p.state(kindFile, name); {
	case digest == want:
		return
	case st == stateOthers:
		p.keep(name)
		return
	case st == stateOurs:
		c.Action = ActionReplace
	}
	p.step(c, func(_ context.Context, p *Plan) error {
		return p.write(entry{Kind: kindFile, Name: name, SHA256: []string{want}}, strings.NewReader(text), 0o644)
	})
}

func (p *Plan) keep(name string) {
	p.Changes = append(p.Changes, Change{Action: ActionKeep, Target: name, Detail: "not written by bottle setup, or changed since"})
}

// edit plans a change of a file that existed before.
func (p *Plan) edit(name, old, text, detail string) {
	p.step(Change{Action: ActionEdit, Target: name, Detail: detail}, func(_ context.Context, p *Plan) error {
		fi, err := os.Stat(p.cfg.path(name))
		if err != nil {
			return err
		}
		return p.write(entry{Kind: kindEdit, Name: name, SHA256: []string{sha256Of([]byte(text))}, Previous: &old}, strings.NewReader(text), fi.Mode().Perm())
	})
}

// programs plans the programs of a release file, and reports whether there are any to write.
func (p *Plan) programs(c choice) bool {
	needed := false
	for _, to := range targets(c.release) {
		change := Change{Action: ActionCreate, Target: to, Detail: "from " + c.name}
		switch st, _ := p.state(kindFile, to); st {
		case stateOthers:
			p.keep(to)
			continue
		case stateOurs:
			if p.rec.Entries[p.rec.index(kindFile, to)].Release == c.digest {
				continue
			}
			change.Action = ActionReplace
		case stateMissing:
		}
		needed = true
		p.step(change, func(_ context.Context, p *Plan) error { return p.program(c, to) })
	}
	return needed
}

// program installs one program of a fetched release file.
func (p *Plan) program(c choice, to string) error {
	f, err := os.Open(p.fetched[c.name].path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	var in io.Reader = f
	for from, target := range c.release.programs {
		if target == to && from != "" {
			if in, err = archived(f, from); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	// Through a copy, because its digest is recorded before the file is written.
	copied := filepath.Join(filepath.Dir(p.fetched[c.name].path), ".program")
	digest, err := copyHashed(in, copied)
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(copied) }() // in a directory that is removed
	out, err := os.Open(copied)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }() // read only
	return p.write(entry{Kind: kindFile, Name: to, SHA256: []string{digest}, Release: c.digest}, out, 0o755)
}

func copyHashed(in io.Reader, to string) (string, error) {
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", err
	}
	h := newHash("")
	_, err = io.Copy(io.MultiWriter(f, h), io.LimitReader(in, maxRelease))
	return sum(h), errors.Join(err, f.Close())
}

// archived returns a regular file of a compressed tar archive.
func archived(archive io.Reader, name string) (io.Reader, error) {
	z, err := gzip.NewReader(archive)
	if err != nil {
		return nil, err
	}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("no file %s in the archive", name)
		}
		if err != nil {
			return nil, err
		}
		if path.Clean(h.Name) == name && h.Typeflag == tar.TypeReg {
			return t, nil
		}
	}
}

// write records and writes a file and its missing directories.
func (p *Plan) write(e entry, in io.Reader, mode fs.FileMode) error {
	if err := p.mkdir(filepath.Dir(e.Name)); err != nil {
		return err
	}
	if err := p.rec.add(e); err != nil {
		return err
	}
	if err := install(p.cfg.path(e.Name), in, mode); err != nil {
		return err
	}
	return p.rec.wrote(e)
}

// mkdir records and creates missing directories.
func (p *Plan) mkdir(name string) error {
	if name == "/" || p.cfg.exists(name) {
		return nil
	}
	if err := p.mkdir(filepath.Dir(name)); err != nil {
		return err
	}
	if err := p.rec.add(entry{Kind: kindDirectory, Name: name}); err != nil {
		return err
	}
	mode := fs.FileMode(0o755)
	if strings.HasPrefix(shimSockets, name) {
		mode = 0o711 // as containerd and its shims create them
	}
	err := os.Mkdir(p.cfg.path(name), mode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(p.cfg.path(name), mode) // whatever the umask is
}

// unit plans to enable and start a unit, or to restart it if it runs.
func (p *Plan) unit(name, detail string) {
	p.step(Change{Action: ActionStart, Target: name, Detail: detail}, func(ctx context.Context, p *Plan) error {
		e := entry{Kind: kindUnit, Name: name}
		if p.rec.index(kindUnit, name) < 0 {
			// The exit code of is-enabled is 1 for a disabled unit.
			out, _ := p.cfg.command(ctx, "systemctl", "is-enabled", name)
			previous := strings.TrimSpace(string(out))
			if name == unitName {
				previous = "disabled"
			}
			e.Previous = &previous
		}
		if name == unitName {
			if err := p.mkdir(shimSockets); err != nil {
				return err
			}
			for _, dir := range []string{containerdRoot, containerdRun} {
				if p.cfg.exists(dir) {
					continue
				}
				if err := p.rec.add(entry{Kind: kindData, Name: dir}); err != nil {
					return err
				}
			}
		}
		if err := p.rec.add(e); err != nil {
			return err
		}
		for _, args := range [][]string{{"daemon-reload"}, {"enable", name}, {"restart", name}} {
			if err := p.cfg.systemctl(ctx, args...); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c Config) systemctl(ctx context.Context, args ...string) error {
	out, err := c.command(ctx, "systemctl", args...)
	if err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, lastLine(out))
	}
	return nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}
