// Package podtest runs the pods of an export under gVisor, without a cluster: its tests do
// what kubelet does with an init container's mounts, variables, user and capabilities.
package podtest
