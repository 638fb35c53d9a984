package provision

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/manifest"
)

// gitTime bounds the run time of the caller's git.
const gitTime = 5 * time.Second

// GitIdentity runs git with the rights of the user, so that their configuration files,
// includes and conditions apply. Without git on the host the identity is empty.
func GitIdentity(ctx context.Context, c caller.Caller) (manifest.Git, error) {
	g, err := gitIdentityIn(ctx, c, c.WorkDir)
	if errors.Is(err, fs.ErrPermission) { // root's directory
		return gitIdentityIn(ctx, c, "/")
	}
	return g, err
}

func gitIdentityIn(ctx context.Context, c caller.Caller, dir string) (manifest.Git, error) {
	program, err := exec.LookPath("git")
	if errors.Is(err, exec.ErrNotFound) {
		return manifest.Git{}, nil
	}
	if err != nil {
		return manifest.Git{}, fmt.Errorf("find git: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, gitTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "config", "--null", "--get-regexp", `^user\.(name|email)$`)
	cmd.Dir = dir
	cmd.Env = []string{"HOME=" + c.Home, "PATH=/usr/local/bin:/usr/bin:/bin"}
	if dir, ok := c.Getenv("XDG_CONFIG_HOME"); ok {
		cmd.Env = append(cmd.Env, "XDG_CONFIG_HOME="+dir)
	}
	if uid := syscall.Geteuid(); uid == 0 && c.UID != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
			Uid: uint32(c.UID), Gid: uint32(c.GID), Groups: groups(c),
		}}
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == 1 { // git-config(1): nothing found
		return manifest.Git{}, nil
	}
	if err != nil {
		why, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return manifest.Git{}, fmt.Errorf("read your git configuration: %w %s", err, why)
	}
	return parseIdentity(string(out)), nil
}

// groups are the supplementary groups of a caller's process.
func groups(c caller.Caller) []uint32 {
	out := make([]uint32, len(c.Groups))
	for i, g := range c.Groups {
		out[i] = uint32(g)
	}
	return out
}

// parseIdentity parses "key\nvalue\0…". The last value of a key applies.
func parseIdentity(out string) manifest.Git {
	var g manifest.Git
	for _, entry := range strings.Split(out, "\x00") {
		key, value, _ := strings.Cut(entry, "\n")
		switch key {
		case "user.name":
			g.Name = value
		case "user.email":
			g.Email = value
		}
	}
	return g
}

// gitFiles appends to the image's ~/.gitconfig, where settings override earlier ones. All
// directories are safe: the agent is alone in its sandbox, whoever owns the files of the
// image.
func gitFiles(home string, g *manifest.Git) []rootfile.File {
	edit := func(old []byte) ([]byte, error) {
		out := bytes.Clone(old)
		if len(out) > 0 && out[len(out)-1] != '\n' {
			out = append(out, '\n')
		}
		out = append(out, "[safe]\n\tdirectory = *\n"...)
		if g == nil {
			return out, nil
		}
		out = append(out, "[user]\n"...)
		for _, kv := range [][2]string{{"name", g.Name}, {"email", g.Email}} {
			if kv[1] != "" {
				out = fmt.Appendf(out, "\t%s = %s\n", kv[0], gitQuoted(kv[1]))
			}
		}
		return out, nil
	}
	return []rootfile.File{{Path: path.Join(home, ".gitconfig"), Mode: 0o644, Edit: edit}}
}

// gitQuoted quotes a value for git's configuration (git-config(1), Syntax).
func gitQuoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`, "\x00", "").Replace(s) + `"`
}
