package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hint"
)

const flagToken = "forward-oauth-token"

// maxEnvFile bounds what is read of variables from one file, in bytes: about
// what the kernel takes of them (execve(2)).
const maxEnvFile = 2 << 20

// envFlags are the ways in which a command line gives variables.
type envFlags struct {
	env, files  []string
	descriptors []int
}

func (f *envFlags) register(fs *pflag.FlagSet) {
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set a variable (NAME=VALUE, which other users of this machine can see) or forward one (NAME)")
	fs.StringArrayVar(&f.files, "env-file", nil, "read variables from a file, as docker does, or with entries that end with NUL bytes")
	fs.IntSliceVar(&f.descriptors, "env-from-fd", nil, "read variables from a file descriptor, in the same formats")
}

// read reads all files and descriptors. All mistakes are told together.
func (f *envFlags) read(a *app) ([]plan.EnvArg, error) {
	var out []plan.EnvArg
	var problems hint.Problems
	add := func(source, from string, open func() (*os.File, error)) error {
		text, err := a.unlessEnded(func() (string, error) { return readEnvFile(open) })
		if err != nil {
			return err
		}
		args, err := plan.ParseEnvFile(source, from, []byte(text))
		out = append(out, args...)
		problems = append(problems, hint.Split(err)...)
		return nil
	}
	for _, path := range f.files {
		if err := add(provision.SourceEnvFile, path, func() (*os.File, error) { return os.Open(path) }); err != nil {
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
		return "", usage(textEnvLarge, f.Name(), maxEnvFile)
	}
	return string(data), nil
}

// descriptor takes over a file that the caller left open. Go's own descriptors
// may have the same numbers, and none of these kinds.
func descriptor(fd int) (*os.File, error) {
	var st unix.Stat_t
	if fd == 1 || fd == 2 {
		return nil, usage(textFDOutput, fd)
	}
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, usage(textFDClosed, fd)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR:
	default:
		return nil, usage(textFDClosed, fd)
	}
	name := fmt.Sprintf("file descriptor %d", fd)
	if fd == 0 {
		return standardInput(name)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name), nil
}

// standardInput takes the standard input over and leaves an empty one in its
// place. Were its number free, the next socket would get it, containerd's, and the
// session would read that for its own input.
func standardInput(name string) (*os.File, error) {
	fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("take over standard input: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	empty, err := os.Open(os.DevNull)
	if err == nil {
		err = errors.Join(unix.Dup3(int(empty.Fd()), 0, 0), empty.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take over standard input: %w", err), f.Close())
	}
	return f, nil
}

// keepSecrets has the kernel write no core file of this process, which is about
// to hold values, and lets no other process of the user's read its memory. A
// core that is piped to a program is not bounded by the limit (core(5)), but a
// process that is not dumpable leaves none (prctl(2)). Neither can fail for a
// process that asks it of itself.
func keepSecrets() {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
}
