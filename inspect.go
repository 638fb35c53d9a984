package bottle

import (
	"context"
	"fmt"
	"slices"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
)

// summary is embedded under this name, so that Details.Status is the state.
type summary = Status

// Details describes one bottle in `bottle inspect`. It contains no secrets.
type Details struct {
	summary
	Manifest  string         `json:"manifest"` // the file that the policy came from
	Bottle    string         `json:"bottle"`   // the bottle's name in that manifest
	PID       uint32         `json:"pid"`      // of the sandbox on the host; 0: not running
	ProxyPID  uint32         `json:"proxy_pid"`
	Container runtime.Facts  `json:"container"`
	Egress    egress.Entries `json:"egress"` // the policy in force
	Learn     bool           `json:"learn"`  // the policy blocks nothing public
	Network   Namespaces     `json:"network"`
	Dir       string         `json:"dir"`       // on tmpfs
	StateDir  string         `json:"state_dir"` // on disk
	Log       string         `json:"egress_log"`
}

// Namespaces are the paths of a bottle's network namespaces.
type Namespaces struct {
	Agent string `json:"agent"`
	Proxy string `json:"proxy"`
}

// Inspect describes a bottle that containerd knows. The error wraps ErrNoBottle if there
// is none.
func (e *Engine) Inspect(ctx context.Context, name string) (Details, error) {
	list, err := e.List(ctx, true)
	if err != nil {
		return Details{}, err
	}
	i := slices.IndexFunc(list, func(s Status) bool { return s.Name == name })
	if i < 0 {
		return Details{}, fmt.Errorf("%w: %s", ErrNoBottle, name)
	}
	d := Details{
		summary: list[i], Dir: e.dir(name), StateDir: e.stateDir(name), Log: e.proxies.LogFile(name),
		Network: Namespaces{Agent: netns.AgentPath(e.dir(name)), Proxy: netns.ProxyPath(e.dir(name))},
	}
	if d.Container, err = e.rt.Facts(ctx, name); err != nil {
		return Details{}, err
	}
	d.PID, d.ProxyPID = e.rt.PID(ctx, name), e.rt.PID(ctx, names.Proxy(name))
	policy, err := e.proxies.Load(name)
	if err != nil {
		return Details{}, err
	}
	d.Egress, d.Learn, d.Manifest, d.Bottle = policy.Entries, policy.Learn, policy.Manifest, policy.Bottle
	return d, nil
}
