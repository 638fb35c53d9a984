package doctor

import (
	"context"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/manifest"
)

// workspaces checks that the work of agents can be kept, in the largest workspace of the
// manifest, which may be nil.
func (d *checks) workspaces(ctx context.Context, e *bottle.Engine, m *manifest.Manifest) {
	if e == nil {
		return // no containerd, which is reported
	}
	size := manifest.Limits{}.OrDefault().Workspace
	if m != nil && len(m.Bottles) > 0 {
		size = 0
		for _, b := range m.Bottles {
			size = max(size, b.Limits.OrDefault().Workspace)
		}
	}
	switch warnings, err := e.Workspace(ctx, size); {
	case err != nil:
		d.report("workspaces", LevelWarn, hint.Of(err), "%v", err)
	case len(warnings) > 0:
		d.report("workspaces", LevelWarn, "free space, or set limits.workspace in the manifest", "%s", warnings[0])
	default:
		d.report("workspaces", LevelOK, "", "ext4 on loop devices, up to %s each", gib(uint64(size)))
	}
}
