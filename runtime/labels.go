package runtime

import (
	"time"

	"github.com/bot-bottle/bottle/internal/names"
)

// Labels of bottle's containers. Containerd limits a key and its value to 4096
// bytes together (containerd pkg/labels), so labels must stay short.
const (
	LabelName    = "bottle.name"    // the bottle's name, on all its containers
	LabelRole    = "bottle.role"    // one of the roles
	LabelAgent   = "bottle.agent"   // the agent's name in the manifest
	LabelImage   = "bottle.image"   // the requested image
	LabelRuntime = "bottle.runtime" // "runsc" or "runc"
	LabelID      = "bottle.id"      // random, on everything that one launch or one RootFS has created
	LabelOwner   = "bottle.owner"   // user ID of the user whose bottle it is
	LabelProxy   = "bottle.proxy"   // kind of the proxy
	LabelUser    = "bottle.user"    // uid:gid[,gid…]:home of the agent's user
)

// Roles of a bottle's containers.
const (
	RoleAgent = "agent"
	RoleProxy = "proxy"
	RoleFront = "front" // of the proxy: it inserts secrets
	RoleWork  = "work"  // a sandbox without a network, over the workspace of a stopped bottle
)

// ProxySuffix is appended to a bottle's name to form the proxy's container ID. A
// slug contains no dot, so the result cannot equal another agent's name.
const ProxySuffix = names.ProxySuffix

// Container describes one of bottle's containers.
type Container struct {
	ID      string
	Role    string
	Labels  map[string]string
	Created time.Time
	Status  string // "running", "stopped", "created", "paused", "none" without a task, or "unknown"
	PID     uint32 // of the task; 0 without one
}

// Alive reports whether the container's task is running, or may be.
func (c Container) Alive() bool { return Alive(c.Status) }

// Alive reports whether a task with the status is running, or may be.
func Alive(status string) bool {
	return status == "running" || status == "paused" || status == "unknown"
}
