package bottle

import (
	"context"
	"strings"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/scratch"
)

// mayRemove reports whether the owner may see and remove what has a name:
// their bottles, and scratch directories, which belong to nobody.
func (c Config) mayRemove(name string) bool {
	_, own := names.Visible(name, c.Owner)
	return own || strings.HasPrefix(name, scratch.Prefix)
}

// checkQuota checks the number of the owner's bottles again, when the launch has its
// name: another launch may have begun since the plan was made.
func (l *launch) checkQuota(ctx context.Context) error {
	if p := l.e.cfg.Rules.Policy(); p == nil || p.BottlesPerUser == 0 {
		return nil
	}
	taken, err := l.e.Taken(ctx)
	if err != nil {
		return err
	}
	return l.e.cfg.Rules.Bottles(names.CountBottles(names.VisibleNames(taken, l.e.cfg.Owner)))
}
