package setup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
)

// Undoing is what Undo will do.
type Undoing struct {
	Changes []Change `json:"changes"`

	cfg Config
}

// PrepareUndo lists what setup has made and what of it will stay.
func PrepareUndo(cfg Config) (*Undoing, error) {
	rec, err := cfg.readRecord()
	if err != nil {
		return nil, err
	}
	u := &Undoing{Changes: []Change{}, cfg: cfg}
	for _, e := range slices.Backward(rec.Entries) {
		c, err := cfg.undoing(e)
		if err != nil {
			return nil, err
		}
		if c.Action != "" {
			u.Changes = append(u.Changes, c)
		}
	}
	return u, nil
}

// undoing returns the change that undoes an entry; an empty one if nothing is left of it.
func (c Config) undoing(e entry) (Change, error) {
	out := Change{Action: ActionRemove, Target: e.Name}
	switch e.Kind {
	case kindPackage:
		out.Detail = "package"
	case kindUnit:
		out.Action = ActionStop
	case kindData:
		out.Detail = "with images and containers"
		if !c.exists(e.Name) {
			return Change{}, nil
		}
	case kindDirectory:
		out.Detail = "if it is empty"
		if !c.exists(e.Name) {
			return Change{}, nil
		}
	default:
		digest, err := digestOf(c.path(e.Name))
		switch {
		case err != nil:
			return Change{}, err
		case e.Kind == kindEdit && digest == sha256Of([]byte(*e.Previous)), digest == "":
			return Change{}, nil // restored or removed already
		case !slices.Contains(e.SHA256, digest):
			out.Action, out.Detail = ActionKeep, "changed since bottle setup wrote it"
		case e.Kind == kindEdit:
			out.Action = ActionRestore
		}
	}
	return out, nil
}

// Undo removes what setup has made, in reverse order. Files that were changed since stay, and
// are returned with packages and directories that are in use. After an error it can be
// repeated.
func (u *Undoing) Undo(ctx context.Context) (kept []Change, err error) {
	l, err := u.cfg.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Release()) }()
	rec, err := u.cfg.readRecord()
	if err != nil {
		return nil, err
	}
	for _, e := range slices.Backward(slices.Clone(rec.Entries)) {
		if err := ctx.Err(); err != nil {
			return kept, err
		}
		c, err := u.cfg.undoing(e)
		if err == nil {
			err = u.cfg.removeTemporary(e)
		}
		if err == nil && c.Action != "" && c.Action != ActionKeep {
			u.cfg.notify(c.Action + " " + c.Target)
			c, err = u.cfg.undo(ctx, e, c)
		}
		if err != nil {
			return kept, hint.Wrap(err, "undo "+e.Name)
		}
		if c.Action == ActionKeep {
			kept = append(kept, c)
		}
		if err := rec.remove(e.Kind, e.Name); err != nil {
			return kept, err
		}
	}
	// Whoever waits for the lock notices that it was removed.
	return kept, errors.Join(rec.delete(), os.Remove(u.cfg.path(lockPath)))
}

// removeTemporary removes what an interrupted write has left.
func (c Config) removeTemporary(e entry) error {
	if e.Kind != kindFile && e.Kind != kindEdit {
		return nil
	}
	if err := os.Remove(temporary(c.path(e.Name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// undo undoes one entry. It returns the change, with ActionKeep if it could not be made.
func (c Config) undo(ctx context.Context, e entry, change Change) (Change, error) {
	path := c.path(e.Name)
	switch e.Kind {
	case kindPackage:
		// dpkg, unlike apt-get, refuses to remove what other packages need.
		if out, err := c.command(ctx, "dpkg", "--purge", e.Name); err != nil {
			change.Action, change.Detail = ActionKeep, "package: "+lastLine(out)
		}
		return change, nil
	case kindUnit:
		return change, c.stopUnit(ctx, e)
	case kindData:
		return change, c.removeData(ctx, e.Name)
	case kindDirectory:
		if err := os.Remove(path); err != nil {
			change.Action, change.Detail = ActionKeep, "not empty"
		}
		return change, nil
	case kindEdit:
		fi, err := os.Stat(path)
		if err != nil {
			return change, err
		}
		return change, install(path, strings.NewReader(*e.Previous), fi.Mode().Perm())
	}
	if err := os.Remove(path); err != nil {
		return change, err
	}
	if e.Name == unitPath && c.systemd() {
		return change, c.systemctl(ctx, "daemon-reload")
	}
	return change, nil
}

func (c Config) stopUnit(ctx context.Context, e entry) error {
	if !c.systemd() {
		return nil
	}
	if err := c.systemctl(ctx, "stop", e.Name); err != nil {
		return err
	}
	if e.Previous != nil && *e.Previous == "enabled" {
		return nil
	}
	return c.systemctl(ctx, "disable", e.Name)
}

// removeData removes a directory of setup's containerd, which must have ended.
func (c Config) removeData(ctx context.Context, name string) error {
	if _, err := c.Version(ctx, PrivateAddress); err == nil {
		return &hint.Error{Err: fmt.Errorf("containerd at %s is still running", PrivateAddress), Hint: "stop it"}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		// The fifth field is the mount point (proc(5)).
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], c.path(name)+"/") {
			return &hint.Error{Err: fmt.Errorf("%s is mounted", f[4]), Hint: "end the bottles, or umount " + f[4]}
		}
	}
	return os.RemoveAll(c.path(name))
}
