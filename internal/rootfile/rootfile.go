// Package rootfile describes a file to write into a container's root file system
// before its task starts.
package rootfile

import "io/fs"

// File replaces a file of the image.
type File struct {
	Path string // absolute, inside the container
	// Mode with fs.ModeDir is a directory. An existing directory keeps its mode.
	Mode fs.FileMode
	// MountPoint makes Path a directory to mount on and replaces anything else
	// that the image has there, such as a symbolic link to a directory.
	MountPoint bool
	// Link makes Path a symbolic link to this absolute path inside the container. It is
	// an error if the image has something else there.
	Link string
	Data []byte
	// Edit, if set, computes the data from the image's file. old is nil if the
	// image has no such file.
	Edit func(old []byte) ([]byte, error)
	// Existing edits a file only if the image has it, and behind a symbolic link the
	// file that the link leads to.
	Existing bool
	// Root makes root the owner of the file and of missing parent directories;
	// otherwise the owner is the agent's user.
	Root bool
}
