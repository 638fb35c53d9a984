package bottle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/bot-bottle/bottle/egress"
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
	for _, want := range []string{name, NamePrefix + name} {
		for _, r := range remains {
			if r.Name == want {
				return want, nil
			}
		}
	}
	return "", &Error{Err: fmt.Errorf("%w: %s", ErrNoBottle, name), Hint: "bottle list shows those that run"}
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

// EgressEntry is one line of a bottle's egress log.
type EgressEntry = egress.Entry

// EgressLog yields the egress log of a bottle from its beginning to where it
// stands now. An error is yielded last.
func (e *Engine) EgressLog(name string) iter.Seq2[EgressEntry, error] {
	return func(yield func(EgressEntry, error) bool) {
		f, err := os.Open(filepath.Join(e.stateDir(name), proxyLog))
		if err != nil {
			yield(EgressEntry{}, fmt.Errorf("open the egress log: %w", err))
			return
		}
		defer func() { _ = f.Close() }()
		for entry, err := range egress.ParseLog(f) {
			if !yield(entry, err) {
				return
			}
		}
	}
}

// RunProxy is the built-in egress proxy's process, until ctx ends; each value
// of reload has it read its configuration again.
func RunProxy(ctx context.Context, config string, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	return egress.Main(ctx, config, reload, stdout, stderr)
}
