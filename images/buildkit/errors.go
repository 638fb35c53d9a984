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

// explain adds to an error of BuildKit's what a person needs: the place in the
// Dockerfile, and whether a disk is full.
func explain(err error) error {
	if err == nil {
		return nil
	}
	if full(err) && !errors.Is(err, ErrNoSpace) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	if place := place(err); place != "" {
		return fmt.Errorf("%s: %w", place, err)
	}
	return err
}

// full tells whether a disk had no room; through gRPC only the words come.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error())
}

// place is the file and line that an error is about, with the line itself.
func place(err error) string {
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

// connectError tells why there is no connection to containerd.
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
