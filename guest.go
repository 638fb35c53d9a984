package bottle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/bot-bottle/bottle/internal/segment"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/runtime"
)

// What an agent's container has of bottle's: one folder on tmpfs, read-only
// inside, and mounted in it the guest program, which is PID 1 and sets secret
// variables.
const (
	guestDir  = "/.bottle"
	guestInit = guestDir + "/init"
	guestEnv  = guestDir + "/env"
	// guestRun is in the sandbox's memory, and the agent's to write.
	guestRun = guestDir + "/run"
)

// mountPoint is where the guest's folder is mounted.
func mountPoint() []runtime.File {
	return []runtime.File{{Path: guestDir, Mode: fs.ModeDir | 0o755, MountPoint: true}}
}

// etcFiles give the agent a name for itself and nothing to ask about others:
// names are resolved by the proxy only.
func etcFiles(hostname string) []runtime.File {
	hosts := "127.0.0.1\tlocalhost\n127.0.1.1\t" + hostname + "\n"
	return []runtime.File{
		{Path: "/etc/hosts", Mode: 0o644, Root: true, Data: []byte(hosts)},
		{Path: "/etc/hostname", Mode: 0o644, Root: true, Data: []byte(hostname + "\n")},
		{Path: "/etc/resolv.conf", Mode: 0o644, Root: true, Data: []byte("# Names are resolved by the egress proxy.\n")},
	}
}

// agentEnv is the agent's environment as far as it may be stored: the proxy's
// address and the literals.
func (l *launch) agentEnv() []string {
	env := []string{
		"HTTPS_PROXY=" + segment.ProxyURL(), "HTTP_PROXY=" + segment.ProxyURL(), "NO_PROXY=localhost,127.0.0.1",
		"https_proxy=" + segment.ProxyURL(), "http_proxy=" + segment.ProxyURL(), "no_proxy=localhost,127.0.0.1",
		// Node's fetch asks for the proxy variables only when told to.
		"NODE_USE_ENV_PROXY=1",
	}
	env = append(env, l.provisionEnv()...)
	for _, v := range l.plan.Env {
		if v.Source == manifest.SourceLiteral {
			env = append(env, v.Name+"="+v.Literal)
		}
	}
	return env
}

// makeGuest makes the folder that is mounted at guestDir: the secret variables,
// and a place for the guest program to be mounted on.
func (l *launch) makeGuest(context.Context) error {
	dir := filepath.Join(l.dir, "guest")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make the guest's folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "init"), nil, 0o755); err != nil {
		return fmt.Errorf("make the guest's folder: %w", err)
	}
	if err := l.writeGuestProgram(); err != nil {
		return err
	}
	var secret []EnvVar
	for _, v := range l.plan.Env {
		if v.Source != manifest.SourceLiteral {
			secret = append(secret, v)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		return fmt.Errorf("make the guest's folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, workDirFile), []byte(l.rootfs.WorkDir()), 0o644); err != nil {
		return fmt.Errorf("make the guest's folder: %w", err)
	}
	if err := l.provisionGuest(dir); err != nil {
		return err
	}
	u := l.rootfs.User
	return writeEnvFile(filepath.Join(dir, "env"), secret, int(u.UID), int(u.GID))
}

// writeEnvFile stores variables so that only the agent's user reads them. Each
// is NAME=VALUE and a NUL, which no variable can hold (environ(7)).
func writeEnvFile(file string, vars []EnvVar, uid, gid int) (err error) {
	var buf bytes.Buffer
	for _, v := range vars {
		buf.WriteString(v.Name + "=" + v.Secret.Reveal() + "\x00")
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o400)
	if err != nil {
		return fmt.Errorf("store the environment: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Chown(uid, gid); err != nil {
		return fmt.Errorf("store the environment: %w", err)
	}
	if _, err := f.Write(buf.Bytes()); err != nil {
		return fmt.Errorf("store the environment: %w", err)
	}
	return nil
}

// writeGuestProgram puts the guest program on disk: Debian, for one, mounts /run
// so that nothing in it can be executed, and gVisor cannot either, as it maps
// what is executed inside with the host's mmap(2). Where the same holds for the
// state folder, bottle's own program serves, which is where programs are.
func (l *launch) writeGuestProgram() error {
	l.guestProgram = l.e.cfg.Program
	if len(l.e.cfg.Guest) == 0 {
		return nil
	}
	dir := l.e.stateDir(l.plan.Name)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if st.Flags&unix.ST_NOEXEC != 0 {
		return nil
	}
	l.guestProgram = filepath.Join(dir, "guest")
	if err := os.WriteFile(l.guestProgram, l.e.cfg.Guest, 0o755); err != nil {
		return fmt.Errorf("write the guest program: %w", err)
	}
	return nil
}

func (l *launch) guestMounts() []runtime.Mount {
	return []runtime.Mount{
		{Source: filepath.Join(l.dir, "guest"), Target: guestDir},
		{Source: l.guestProgram, Target: guestInit},
	}
}
