// Package egress decides what may leave a bottle, and enforces it.
//
// A [Policy] is the decision: a list of names, addresses and ports that may be
// reached; everything else is refused. It has no side effects, so that a plan
// can show it and tests can query it. A [Server] is the built-in proxy that
// enforces a policy: it serves CONNECT and plain HTTP requests, resolves names
// itself and dials only addresses that it has checked. [ParseLog] reads the log
// of either proxy, the built-in one or pipelock, and [Policy.Render] generates
// pipelock's configuration for the same policy.
//
// The hidden command that runs the proxy process calls [Main]. This package
// must not depend on containerd, network namespaces or manifests, and must
// never reach an address that the policy does not allow.
package egress
