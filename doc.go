// Package bottle runs AI coding agents in sandboxes that reach nothing but what
// their user allowed, on a host that has containerd.
//
// A user writes a [Manifest] of bottles and agents. A [Spec] is what one run
// asks for. [Prepare] resolves it against the manifest and the host to a
// [Plan]: every name, image, variable and host allowed. It makes nothing, and
// whatever can be wrong is said there. [Engine.Launch] makes a [Bottle] of the
// plan: two network namespaces, an agent's task under gVisor in one, an egress
// proxy's task in the other, which alone leads out. [Bottle.Exec] runs a session
// in it and [Bottle.Remove] takes everything away, by the same code that
// [Engine.Clean] uses on what a crash has left.
//
// The command in cmd/bottle uses this package, and other programs may. The
// packages runtime, netns, images and egress are for this one alone. The package
// never prints, never ends the process, and never hands a secret to anything
// that would store it.
package bottle
