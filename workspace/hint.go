package workspace

import (
	"errors"

	"github.com/bot-bottle/bottle/internal/hint"
)

// Hint adds a hint to an error about the storage of workspaces.
func Hint(err error) error {
	switch {
	case errors.Is(err, ErrNoMkfs):
		return &hint.Error{Err: err, Hint: "install e2fsprogs, or use --cwd-image, which does not keep the agent's work"}
	case errors.Is(err, ErrNoLoop):
		return &hint.Error{Err: err, Hint: "load the kernel's module (modprobe loop), or use --cwd-image, which does not keep the agent's work"}
	case errors.Is(err, ErrNoExt4):
		return &hint.Error{Err: err, Hint: "use a kernel with ext4, or --cwd-image, which does not keep the agent's work"}
	}
	return err
}
