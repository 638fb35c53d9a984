// Package runtime runs a bottle's two tasks through containerd: the agent under
// gVisor's runsc shim (or, when asked for, runc) and the egress proxy under
// runc. It knows containers, tasks, snapshots, labels and sessions; it knows
// nothing of manifests, networks or policies.
//
// All state is containerd's own: a bottle is two containers, NAME and
// NAME.proxy, found again by their labels. Every function that removes is
// idempotent, so that tidying up after a crash is the same code as an ordinary
// end.
//
// No secret may be handed to this package: what stands in a container's spec is
// stored on containerd's disk.
package runtime
