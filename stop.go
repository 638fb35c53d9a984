package bottle

import (
	"context"
	"time"

	"github.com/bot-bottle/bottle/internal/names"
)

// Stop ends a bottle's agent and keeps the bottle: the agent's processes get SIGTERM, and
// what is left of them after grace is killed. Then the proxy ends. killed reports whether
// the grace period was too short. A bottle that does not run is not an error.
func (e *Engine) Stop(ctx context.Context, name string, grace time.Duration) (killed bool, err error) {
	killed, err = e.rt.Stop(ctx, name, grace)
	if err != nil {
		return killed, err
	}
	// Afterwards, because what the agent does at its end may need the proxy.
	_, err = e.rt.Stop(ctx, names.Proxy(name), 0)
	return killed, err
}
