package caller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/bot-bottle/bottle/internal/hint"
)

// commandPath is the PATH of a command that is run for the caller.
const commandPath = "/usr/local/bin:/usr/bin:/bin"

// Output runs a program of the caller's choice with the rights of the caller and a clean
// environment: nothing of bottle's own, and under sudo nothing of root's, reaches it.
// It returns at most limit bytes of its standard output; stderr receives its standard error.
// The program is found in the usual directories, or by an absolute path.
func (c Caller) Output(ctx context.Context, command []string, limit int, stderr io.Writer) ([]byte, error) {
	env := c.commandEnviron()
	program, err := lookPath(command[0])
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, command[1:]...)
	cmd.Dir, cmd.Env, cmd.Stderr = "/", env, stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if os.Geteuid() == 0 && c.UID != 0 {
		groups := make([]uint32, len(c.Groups))
		for i, g := range c.Groups {
			groups[i] = uint32(g)
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.UID), Gid: uint32(c.GID), Groups: groups}
	}
	out := &bounded{limit: limit}
	cmd.Stdout = out
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case out.exceeded:
		return nil, fmt.Errorf("%s printed more than %d bytes", command[0], limit)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", command[0], err)
	}
	return out.buf.Bytes(), nil
}

// lookPath finds a program in the directories of commandPath.
func lookPath(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return name, nil
	}
	if strings.Contains(name, "/") {
		return "", &hint.Error{Err: fmt.Errorf("invalid program %q: a relative path", name), Hint: "use a name or an absolute path"}
	}
	for dir := range strings.SplitSeq(commandPath, ":") {
		if fi, err := os.Stat(dir + "/" + name); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return dir + "/" + name, nil
		}
	}
	return "", &hint.Error{Err: fmt.Errorf("unknown program %q: not in %s", name, commandPath), Hint: "install it, or write its absolute path"}
}

// commandEnviron returns the environment of a command: who and where the caller is, and
// what programs such as gpg need to ask a question on the terminal.
func (c Caller) commandEnviron() []string {
	env := []string{"HOME=" + c.Home, "PATH=" + commandPath}
	if u, err := user.LookupId(strconv.Itoa(c.UID)); err == nil {
		env = append(env, "USER="+u.Username, "LOGNAME="+u.Username)
	}
	if dir := fmt.Sprintf("/run/user/%d", c.UID); isDir(dir) {
		env = append(env, "XDG_RUNTIME_DIR="+dir)
	}
	for _, name := range []string{"LANG", "TERM"} {
		if v, ok := c.Getenv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	if tty, err := os.Readlink("/proc/self/fd/0"); err == nil && strings.HasPrefix(tty, "/dev/pts/") {
		env = append(env, "GPG_TTY="+tty)
	}
	return env
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// bounded keeps the beginning of an output.
type bounded struct {
	buf      bytes.Buffer // not embedded: its ReadFrom has no limit
	limit    int
	exceeded bool
}

var errExceeded = errors.New("too much output")

func (b *bounded) Write(p []byte) (int, error) {
	if b.buf.Len()+len(p) > b.limit {
		b.exceeded = true
		return 0, errExceeded // ends the program with SIGPIPE
	}
	return b.buf.Write(p)
}
