package filetree

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// Commands of the program inside a sandbox, after "files".
const (
	CommandList = "list" // DIR: write a list of all files
	CommandHash = "hash" // DIR: read names, write a list with hashes
	CommandPack = "pack" // DIR: read names, write an archive
	CommandGet  = "get"  // PATH: write an archive of a file or directory
	CommandPut  = "put"  // DEST SOURCE dir|file: read an archive, write files
)

// Command runs one of the commands and returns its exit code: 0, or 1 after an error,
// which it writes to stderr.
func Command(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	out := bufio.NewWriterSize(stdout, 256<<10)
	err := run(args, stdin, out, stderr)
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	switch {
	case len(args) == 2 && args[0] == CommandGet:
		return get(args[1], stdout, stderr)
	case len(args) == 4 && args[0] == CommandPut:
		return put(args[1], args[2], args[3] == "dir", stdin, stderr)
	case len(args) != 2:
		return errors.New("invalid arguments")
	}
	root, err := Open(args[1])
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // read only
	switch args[0] {
	case CommandList:
		return List(root, stdout)
	case CommandHash:
		return Hash(root, stdin, stdout)
	case CommandPack:
		return Pack(root, stdin, stdout)
	}
	return fmt.Errorf("unknown command %s", args[0])
}

// get packs what path names. A symbolic link is packed as one, unless path ends with a
// slash or "/.".
func get(path string, stdout, stderr io.Writer) error {
	dir, name := filepath.Dir(filepath.Clean(path)), filepath.Base(filepath.Clean(path))
	if last := path[len(path)-1]; last == '/' || last == '.' || name == "/" {
		dir, name = path, "."
	}
	root, err := Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }() // read only
	return PackAll(root, name, ".", stdout, func(name string) { _, _ = fmt.Fprintf(stderr, "%s%q\n", OmittedMark, name) })
}

// OmittedMark begins the lines on standard error about files that an archive does not contain.
const OmittedMark = "omitted: "

func put(dest, source string, isDir bool, stdin io.Reader, stderr io.Writer) error {
	dir, name, err := Place(dest, source, isDir)
	if err != nil {
		return err
	}
	root, err := Open(dir)
	if err != nil {
		return err
	}
	err = Unpack(root, stdin, Unpacking{
		As: name, UID: -1, GID: -1, Outward: true, Git: true, Replace: true,
		Notice: func(name, _ string) { _, _ = fmt.Fprintf(stderr, "%s%q\n", OmittedMark, name) },
	})
	return errors.Join(err, root.Close())
}
