// Package egress decides what may leave a bottle, and enforces it.
//
// A [Policy] is the decision: a list of names, addresses and ports that may be
// reached; everything else may not. It is pure, so the plan can show it and a
// test can ask it. A [Server] is the built-in proxy that enforces a policy: it
// answers CONNECT and plain HTTP requests, resolves names itself and dials only
// addresses that it has checked. [ParseLog] reads what a proxy logged, the
// built-in one or pipelock, and [Policy.Render] writes pipelock's
// configuration for the same policy.
//
// The command of the hidden proxy process calls [Main]; everything else is for
// the root package. Nothing here knows containerd, namespaces or manifests, and
// nothing here may ever reach an address that the policy does not name.
package egress
