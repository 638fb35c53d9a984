package buildkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/moby/buildkit/solver/errdefs"
)

// explain adds to a BuildKit error its position in the Dockerfile, and ErrNoSpace if
// a disk is full.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if diskFull(err) && !errors.Is(err, ErrNoSpace) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if p := position(err); p != "" {
		return fmt.Errorf("%s: %w", p, err)
	}
	return err
}

// diskFull reports whether a disk is full; gRPC transports only the text.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error())
}

// position returns the file, line number and line that an error refers to.
func position(err error) string {
	for _, s := range errdefs.Sources(err) {
		if s.Info == nil || len(s.Ranges) == 0 || s.Ranges[0].Start == nil {
			continue
		}
		n := int(s.Ranges[0].Start.Line)
		lines := strings.Split(string(s.Info.Data), "\n")
		if n < 1 || n > len(lines) {
			return s.Info.Filename
		}
		return fmt.Sprintf("%s:%d: %s", s.Info.Filename, n, strings.TrimSpace(lines[n-1]))
	}
	return ""
}

// connectError classifies a failed connection to containerd.
func connectError(address string, err error) error {
	err = fmt.Errorf("connect to containerd at %s: %w", address, err)
	switch {
	case errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), syscall.EACCES.Error()):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, context.DeadlineExceeded),
		strings.Contains(err.Error(), syscall.ENOENT.Error()), strings.Contains(err.Error(), syscall.ECONNREFUSED.Error()):
		return fmt.Errorf("%w: %w", ErrNoContainerd, err)
	}
	return err
}
