package bottle

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/names"
)

// ErrNoBottle is wrapped when no bottle has the name asked for.
var ErrNoBottle = errors.New("no such bottle")

// Resolve finds the bottle that a user means: by its name, or by what follows
// NamePrefix in it. A bottle of which only remains are left counts.
func (e *Engine) Resolve(ctx context.Context, name string) (string, error) {
	remains, err := e.Survey(ctx)
	if err != nil {
		return "", err
	}
	for _, want := range []string{name, names.Prefix + name} {
		for _, r := range remains {
			if r.Name == want {
				return want, nil
			}
		}
	}
	return "", &hint.Error{Err: fmt.Errorf("%w: %s", ErrNoBottle, name), Hint: "bottle list shows those that run"}
}

// Running tells whether the bottle's agent runs.
func (e *Engine) Running(ctx context.Context, name string) (bool, error) {
	list, err := e.List(ctx, false)
	if err != nil {
		return false, err
	}
	for _, s := range list {
		if s.Name == name {
			return !strings.HasPrefix(s.Status, "stopped"), nil
		}
	}
	return false, nil
}
