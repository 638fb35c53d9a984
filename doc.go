// Package bottle runs AI coding agents in sandboxes that reach only what their user
// allowed, on a host with containerd.
//
// A user describes bottles and agents in a manifest (package manifest). A [plan.Spec]
// is the request of one run. [plan.Prepare] resolves it against the manifest and the
// host to a [plan.Plan] with every name, image, variable and allowed host; it creates
// nothing and reports all mistakes. Provide of [Engine.Images] builds and pulls the images
// that the plan lacks. [Engine.Launch] creates a [Bottle] from the plan: two network
// namespaces, an agent's task under gVisor in one, and an egress proxy's task in the
// other, which is the only way out. [Bottle.Exec] runs a session in it.
// [Bottle.Remove] removes everything, with the same code that
// [Engine.RemoveLeftovers] applies to what a crash has left.
//
// The command in cmd/bottle uses this package, and other programs may. The packages
// runtime, netns, images and egress are meant for this module only. The package never
// prints, never ends the process, and never passes a secret to anything that would
// store it.
package bottle
