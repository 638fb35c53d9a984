// Package runtime runs a bottle's two tasks through containerd: the agent under
// gVisor's runsc shim (or, when asked for, runc) and the egress proxy under
// runc. It handles containers, tasks, snapshots, labels and sessions, and has no
// knowledge of manifests, networks or policies.
//
// All state is containerd's own: a bottle is two containers, NAME and
// NAME.proxy, found by their labels. Every removal is idempotent, so that cleanup
// after a crash uses the same code as normal shutdown.
//
// Secrets must not be passed to this package: containerd stores container specs
// on disk.
package runtime
