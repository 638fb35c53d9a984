package setup

import (
	"archive/tar"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
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

func (p *Plan) state(name string) (state, string) {
	digest, err := digestOf(p.cfg.path(name))
	if digest == "" && err == nil {
		return stateMissing, ""
	}
	if i := p.rec.index(kindFile, name); i >= 0 && slices.Contains(p.rec.Entries[i].SHA256, digest) {
		return stateOurs, digest
	}
	return stateOthers, digest
}

// file plans a file with these contents, which everybody may read.
func (p *Plan) file(name, text string) {
	want := sha256Of([]byte(text))
	c := Change{Action: ActionCreate, Target: name}
	switch st, digest := p.state(name); {
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
		do := func(_ context.Context, p *Plan) error { return p.program(c, to) }
		st, current := p.programState(c, to)
		if strings.HasSuffix(to, "/") {
			st, current = p.directoryState(c, to)
			do = func(_ context.Context, p *Plan) error { return p.directory(c, to) }
		}
		switch {
		case st == stateOthers:
			p.keep(to)
			continue
		case current:
			continue
		case st == stateOurs:
			change.Action = ActionReplace
		}
		needed = true
		p.step(change, do)
	}
	return needed
}

// programState returns the state of a program, and whether it is that of the release file.
func (p *Plan) programState(c choice, to string) (st state, current bool) {
	st, _ = p.state(to)
	return st, st == stateOurs && p.rec.Entries[p.rec.index(kindFile, to)].Release == c.digest
}

// directoryState is programState for a directory of programs.
func (p *Plan) directoryState(c choice, to string) (st state, current bool) {
	recorded := p.rec.below(to)
	if len(recorded) == 0 {
		if p.cfg.exists(to) {
			return stateOthers, false
		}
		return stateMissing, false
	}
	current = true
	for _, e := range recorded {
		st, same := p.programState(c, e.Name)
		if st == stateOthers {
			p.keep(e.Name)
			continue
		}
		current = current && same
	}
	return stateOurs, current
}

// program installs one program of a fetched release file.
func (p *Plan) program(c choice, to string) error {
	contents, err := p.contents(c)
	if err != nil {
		return err
	}
	return p.install(contents[to], to, c)
}

// directory installs the programs of a directory of a fetched release file, and removes those of
// another release. All are recorded first: after an interruption the rest is known to be missing.
func (p *Plan) directory(c choice, to string) error {
	contents, err := p.contents(c)
	if err != nil {
		return err
	}
	if err := p.mkdir(strings.TrimSuffix(to, "/")); err != nil {
		return err
	}
	var names []string
	for name := range contents {
		if st, _ := p.programState(c, name); strings.HasPrefix(name, to) && st != stateOthers {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if err := p.rec.add(entry{Kind: kindFile, Name: name, SHA256: []string{contents[name].digest}}); err != nil {
			return err
		}
	}
	for _, name := range names {
		if err := p.install(contents[name], name, c); err != nil {
			return err
		}
	}
	for _, e := range p.rec.below(to) {
		if _, ok := contents[e.Name]; ok {
			continue
		}
		if st, _ := p.state(e.Name); st == stateOurs {
			if err := os.Remove(p.cfg.path(e.Name)); err != nil {
				return err
			}
		}
		if err := p.rec.remove(kindFile, e.Name); err != nil {
			return err
		}
	}
	return nil
}

// unpacked is a program of a release file in a scratch directory.
type unpacked struct{ path, digest string }

// install writes a program, whose digest is recorded before.
func (p *Plan) install(u unpacked, to string, c choice) error {
	in, err := os.Open(u.path)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // read only
	return p.write(entry{Kind: kindFile, Name: to, SHA256: []string{u.digest}, Release: c.digest}, in, 0o755)
}

// contents returns the programs of a fetched release file by the paths under which they are
// installed. It reads an archive once: a compressed one cannot be searched.
func (p *Plan) contents(c choice) (map[string]unpacked, error) {
	if got, ok := p.unpacked[c.name]; ok {
		return got, nil
	}
	f := p.fetched[c.name]
	in, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = in.Close() }() // read only
	got := map[string]unpacked{}
	if to, ok := c.release.programs[""]; ok {
		got[to] = unpacked{f.path, f.sha256}
	} else {
		p.cfg.notify("unpacking " + c.name)
		if err := unpack(in, c, filepath.Dir(f.path), got); err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
	}
	if p.unpacked == nil {
		p.unpacked = map[string]map[string]unpacked{}
	}
	p.unpacked[c.name] = got
	return got, nil
}

// unpack copies the programs of an archive to dir.
func unpack(archive io.Reader, c choice, dir string, got map[string]unpacked) error {
	in, err := decompressed(archive, c.name)
	if err != nil {
		return err
	}
	for t := tar.NewReader(in); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		to := c.release.target(path.Clean(h.Name))
		if to == "" || h.Typeflag != tar.TypeReg {
			continue
		}
		u := unpacked{path: filepath.Join(dir, fmt.Sprintf(".%s.%d", c.name, len(got)))}
		if u.digest, err = copyHashed(t, u.path); err != nil {
			return err
		}
		got[to] = u
	}
	for from, to := range c.release.programs {
		found := slices.ContainsFunc(slices.Collect(maps.Keys(got)), func(name string) bool {
			return name == to || strings.HasSuffix(to, "/") && strings.HasPrefix(name, to)
		})
		if !found {
			return fmt.Errorf("no %s in the archive", from)
		}
	}
	return nil
}

func decompressed(archive io.Reader, name string) (io.Reader, error) {
	if strings.HasSuffix(name, ".bz2") {
		return bzip2.NewReader(archive), nil
	}
	return gzip.NewReader(archive)
}

// target returns where a file of the archive is installed; "" if it is not.
func (r release) target(name string) string {
	if to, ok := r.programs[name]; ok {
		return to
	}
	dir, base := path.Split(name)
	if to, ok := r.programs[dir]; ok && dir != "" {
		return to + base
	}
	return ""
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
