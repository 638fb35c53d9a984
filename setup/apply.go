package setup

import (
	"context"
	"errors"
	"os"

	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/hint"
)

// lockPath is locked while a host is being changed. It is on tmpfs and stays until the next
// boot.
const lockPath = "/run/bottle-setup.lock"

func (c Config) lock(ctx context.Context) (*filelock.Lock, error) {
	return filelock.Create(ctx, c.path(lockPath), func() { c.notify("waiting for another bottle setup") })
}

// Apply makes the changes of the plan. All release files are fetched and verified before the
// first change. After an error, Prepare and Apply continue where it stopped.
func (p *Plan) Apply(ctx context.Context) (err error) {
	l, err := p.cfg.lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Release()) }()
	dir, err := os.MkdirTemp(p.cfg.path("/var/tmp"), "bottle-setup-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := p.fetch(ctx, dir); err != nil {
		return err
	}
	// Another setup may have ended since the plan was made.
	if p.rec, err = p.cfg.readRecord(); err != nil {
		return err
	}
	for _, a := range p.actions {
		if err := ctx.Err(); err != nil {
			return err
		}
		p.cfg.notify(a.change.Action + " " + a.change.Target)
		if err := a.do(ctx, p); err != nil {
			return hint.Wrap(err, a.change.Action+" "+a.change.Target)
		}
	}
	return nil
}

func (p *Plan) fetch(ctx context.Context, dir string) error {
	p.fetched = map[string]fetched{}
	var problems hint.Problems
	for _, c := range p.choices {
		p.cfg.notify("checking " + c.name)
		f, err := p.cfg.fetch(ctx, p.req.Sources, c, dir)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		problems.Add(err)
		p.fetched[c.name] = f
	}
	return problems.Err()
}
