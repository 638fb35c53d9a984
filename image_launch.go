package bottle

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/hint"
)

// makeImage makes the image with the working directory, and unpacks the image. Other launches may make one of the same name: what
// this one has made is its own until hold is released, once a snapshot is over
// it.
func (l *launch) makeImage(ctx context.Context) error {
	p := l.plan
	if p.Folder != "" {
		if err := l.derive(ctx); err != nil {
			return err
		}
	}
	return registryHint(p.Image, l.e.images.Unpack(ctx, p.Image))
}

func (l *launch) derive(ctx context.Context) (err error) {
	if l.hold, err = holdDir(ctx, l.e.dir("")); err != nil {
		return err
	}
	p := l.plan
	notice := l.e.cfg.Notice
	_, err = l.e.images.Derive(ctx, images.Derivation{
		Ref: p.Image, Base: p.BaseRef, Dir: p.Folder, Target: p.Target,
		Owner: func(ctx context.Context) (int, int, error) {
			u, err := l.e.rt.ImageUser(ctx, p.BaseRef)
			return int(u.UID), int(u.GID), err
		},
		Notice: notice, Progress: l.e.cfg.Progress,
	})
	if errors.Is(err, images.ErrNoSpace) {
		return &hint.Error{Err: err, Hint: "make room: bottle rmi removes images, and what .bottleignore names stays out"}
	}
	return registryHint(p.BaseRef, err)
}

// releaseImage ends the hold on the derived image's name.
func (l *launch) releaseImage() {
	if l.hold != nil {
		_ = l.hold.Close() // closing releases it, whatever it returns
		l.hold = nil
	}
}

// holdDir waits for the lock on a folder, until ctx ends. It is released when
// the file is closed, or the process ends.
func holdDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder to be locked: %w", err)
	}
	done := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		if err != nil {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
		}
		return f, nil
	case <-ctx.Done():
		// flock cannot be interrupted: whoever gets it gives it back.
		go func() {
			_ = errors.Join(<-done, f.Close()) // nobody is left to tell
		}()
		return nil, fmt.Errorf("wait for the lock of %s: %w", dir, ctx.Err())
	}
}
