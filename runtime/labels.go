package runtime

import "time"

// Labels that bottle's containers carry. Containerd limits a key and its value
// to 4096 bytes together (containerd pkg/labels), so that nothing long is kept
// in one.
const (
	LabelName    = "bottle.name"    // the bottle's name, on both containers
	LabelRole    = "bottle.role"    // RoleAgent or RoleProxy
	LabelAgent   = "bottle.agent"   // the agent's name in the manifest
	LabelImage   = "bottle.image"   // the image asked for
	LabelRuntime = "bottle.runtime" // "runsc" or "runc"
	LabelProxy   = "bottle.proxy"   // kind of the proxy
	LabelUser    = "bottle.user"    // uid:gid[,gid…]:home of the agent's user
)

// Roles of a bottle's containers.
const (
	RoleAgent = "agent"
	RoleProxy = "proxy"
)

// ProxySuffix makes the proxy's container id of a bottle's name. A slug holds
// no dot, so no agent's name can run into it.
const ProxySuffix = ".proxy"

// Container is what containerd knows of one of bottle's containers.
type Container struct {
	ID      string
	Role    string
	Labels  map[string]string
	Created time.Time
	Status  string // "running", "stopped", "created", "paused", "none" without a task, or "unknown"
	PID     uint32 // of the task; 0 without one
}
