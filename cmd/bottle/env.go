package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
)

const flagToken = "forward-oauth-token"

// maxEnvFile is the largest file of variables, in bytes: about the size of the
// environment that the kernel accepts (execve(2)).
const maxEnvFile = 2 << 20

// envFlags are the flags that set variables.
type envFlags struct {
	env, files  []string
	descriptors []int
}

func (f *envFlags) register(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set a variable (NAME=VALUE; visible to other users of the host) or forward one (NAME)")
	fs.StringArrayVar(&f.files, "env-file", nil, "read variables from a file, in docker's format or separated by NUL bytes")
	fs.IntSliceVar(&f.descriptors, "env-from-fd", nil, "read variables from an open file descriptor, in the same formats")
}

// read reads all files and descriptors and reports all errors together. A pipe among
// the files is read later, see plan.PipeArg.
func (f *envFlags) read(a *app, c caller.Caller) ([]plan.EnvArg, error) {
	var out []plan.EnvArg
	var problems hint.Problems
	add := func(source, from string, open func() (*os.File, error)) error {
		text, err := a.interruptibly(0, func() (string, error) { return readEnvFile(open) })
		if err != nil {
			return err
		}
		args, err := plan.ParseEnvFile(source, from, []byte(text))
		out = append(out, args...)
		problems = append(problems, hint.Split(err)...)
		return nil
	}
	for _, path := range f.files {
		file, err := c.Open(path)
		if errors.Is(err, caller.ErrNotRegular) && isPipe(c, path) {
			out = append(out, plan.PipeArg(provision.SourceEnvFile, path))
			continue
		}
		if err != nil {
			return nil, envFileHint(err)
		}
		if err := add(provision.SourceEnvFile, path, func() (*os.File, error) { return file, nil }); err != nil {
			return nil, err
		}
	}
	for _, fd := range f.descriptors {
		if err := add(provision.SourceDescriptor, strconv.Itoa(fd), func() (*os.File, error) { return descriptor(fd) }); err != nil {
			return nil, err
		}
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return out, nil
}

func envFileHint(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return withHint(err, hintEnvFile)
	}
	return err
}

// isPipe reports whether a file is one that is read once, as a process substitution.
func isPipe(c caller.Caller, path string) bool {
	fi, err := c.Stat(path)
	return err == nil && fi.Mode()&(os.ModeNamedPipe|os.ModeCharDevice) != 0
}

// pipeTimeout bounds reading a pipe of --env-file: its writer may wait for the user,
// who unlocks a password store, or may never come.
const pipeTimeout = time.Minute

// readPipe reads a pipe of --env-file with the caller's rights.
func (a *app) readPipe(c caller.Caller, path string) ([]plan.EnvArg, error) {
	text, err := a.interruptibly(cmp.Or(a.pipeTimeout, pipeTimeout), func() (string, error) {
		return readEnvFile(func() (f *os.File, err error) {
			err = c.Do(func() error {
				f, err = os.Open(path)
				return err
			})
			return f, err
		})
	})
	if errors.Is(err, context.DeadlineExceeded) {
		err = withHint(fmt.Errorf(textPipeTimeout, path, cmp.Or(a.pipeTimeout, pipeTimeout)), hintPipeTimeout)
	}
	if err != nil {
		return nil, envFileHint(err)
	}
	return plan.ParseEnvFile(provision.SourceEnvFile, path, []byte(text))
}

// readPipes reads the pipes of --env-file, after the run was confirmed.
func (a *app) readPipes(p *plan.Plan) error {
	return p.ReadPipes(func(path string) ([]plan.EnvArg, error) { return a.readPipe(p.Caller(), path) })
}

func readEnvFile(open func() (*os.File, error)) (string, error) {
	f, err := open()
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err != nil {
		return "", fmt.Errorf("read variables: %w", err)
	}
	if len(data) > maxEnvFile {
		return "", fmt.Errorf(textEnvLarge, f.Name(), maxEnvFile)
	}
	return string(data), nil
}

// descriptor takes ownership of a file that the caller left open. This process may have
// opened one with such a number itself, but only with close-on-exec, which no descriptor
// has that came through execve(2).
func descriptor(fd int) (*os.File, error) {
	closed := withHint(fmt.Errorf(textFDClosed, fd), hintFDClosed)
	var st unix.Stat_t
	if fd == 1 || fd == 2 {
		return nil, withHint(fmt.Errorf(textFDOutput, fd), hintFDOutput)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err != nil || flags&unix.FD_CLOEXEC != 0 {
		return nil, closed
	}
	if mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || mode&unix.O_ACCMODE == unix.O_WRONLY || mode&unix.O_PATH != 0 {
		return nil, closed
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR:
	default:
		return nil, closed
	}
	name := fmt.Sprintf("file descriptor %d", fd)
	if fd == 0 {
		return standardInput(name)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}

// standardInput takes ownership of standard input and replaces it with an empty
// one. If descriptor 0 were free, the connection to containerd would get it, and
// the session would read that as its input.
func standardInput(name string) (*os.File, error) {
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate standard input: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	empty, err := os.Open(os.DevNull)
	if err == nil {
		err = errors.Join(unix.Dup3(int(empty.Fd()), 0, 0), empty.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("duplicate standard input: %w", err), f.Close())
	}
	return f, nil
}
