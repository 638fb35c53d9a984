package session

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/runtime"
)

// ErrNone is wrapped if a bottle has no session that PID 1 holds.
var ErrNone = errors.New("no session to attach to")

// Manager manages the held sessions of the bottles in one containerd namespace. It has no
// state of its own.
type Manager struct {
	rt  *runtime.Client
	log *slog.Logger
}

// New returns a Manager.
func New(rt *runtime.Client, log *slog.Logger) *Manager { return &Manager{rt: rt, log: log} }

func (m *Manager) guestDir(name string) string { return GuestDir(m.rt.Dir(name)) }

// none is the error for a bottle without a held session.
func none(name string) error {
	return &hint.Error{Err: fmt.Errorf("%s: %w", name, ErrNone), Hint: "only a bottle of bottle run -d or --keep has one"}
}
