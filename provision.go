package bottle

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/runtime"
)

// What an agent finds in its place is put there before anything of it runs, in
// one of two ways: what may lie on disk as files of its root file system, all
// else in the guest's folder on tmpfs, which is read-only inside.

// provision returns the files of the root file system.
func (l *launch) provision(r *runtime.RootFS) ([]runtime.File, error) {
	home := r.Home()
	if dir, ok := l.setting(r, "HOME"); ok {
		home = dir
	}
	claude := claudePlaces(home)
	if dir, ok := l.setting(r, "CLAUDE_CONFIG_DIR"); ok {
		claude = claudeConfigDir(dir)
	}
	return slices.Concat(
		mountPoint(),
		etcFiles(names.Hostname(l.plan.Name)),
		skillsIn(claude.skills, l.plan.skillFiles),
		gitFiles(home, l.plan.Git),
		claudeFiles(claude, r.WorkDir()),
		sshFiles(r),
	), nil
}

// provisionEnv is the environment that goes with what was provided. What the
// manifest, the command line or the image says goes over it.
func (l *launch) provisionEnv() []string {
	env := promptEnv(l.plan.Prompt)
	defaults := claudeEnv(l.rootfs.User.UID)
	if len(l.plan.agentKeys()) > 0 {
		defaults = append(defaults, "SSH_AUTH_SOCK="+guestSSHSocket)
	}
	for _, kv := range defaults {
		name, _, _ := strings.Cut(kv, "=")
		if !l.says(name) {
			env = append(env, kv)
		}
	}
	return env
}

// provisionGuest writes the files of the guest's folder.
func (l *launch) provisionGuest(dir string) error {
	if l.plan.Prompt != "" {
		if err := l.writeGuest(filepath.Join(dir, "prompt"), 0o600, []byte(l.plan.Prompt)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "ssh"), 0o755); err != nil {
		return fmt.Errorf("make the guest's folder: %w", err)
	}
	for _, f := range l.plan.sshGuestFiles() {
		if err := l.writeGuest(filepath.Join(dir, "ssh", f.name), f.mode, f.data); err != nil {
			return err
		}
	}
	return nil
}

// setting returns a variable that is no secret, from the manifest or else the
// image. It is an absolute path, or nothing.
func (l *launch) setting(r *runtime.RootFS, name string) (string, bool) {
	for _, v := range l.plan.Env {
		if v.Name == name && v.Source == manifest.SourceLiteral {
			return v.Literal, filepath.IsAbs(v.Literal)
		}
	}
	for _, kv := range r.Config().Env {
		if value, ok := strings.CutPrefix(kv, name+"="); ok {
			return value, filepath.IsAbs(value)
		}
	}
	return "", false
}

// says tells whether the manifest, the command line or the image sets a variable.
func (l *launch) says(name string) bool {
	return slices.ContainsFunc(l.plan.Env, func(v EnvVar) bool { return v.Name == name }) ||
		slices.ContainsFunc(l.rootfs.Config().Env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

// writeGuest writes a file that is the agent's user's.
func (l *launch) writeGuest(file string, mode fs.FileMode, data []byte) error {
	what := filepath.Base(file)
	if err := os.WriteFile(file, data, mode); err != nil {
		return fmt.Errorf("put the %s into the bottle: %w", what, err)
	}
	if err := os.Chown(file, int(l.rootfs.User.UID), int(l.rootfs.User.GID)); err != nil {
		return fmt.Errorf("put the %s into the bottle: %w", what, err)
	}
	return nil
}
