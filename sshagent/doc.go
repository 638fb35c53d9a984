// Package sshagent implements the ssh agent that is available in a bottle. Private
// keys stay on the host; the agent signs only authentication requests for the
// hosts that a key is listed for. The package speaks the agent protocol over one
// stream from the sandbox (relay), determines which host a signature is for
// (bind.go), and reads the user's private keys, upstream agent and known hosts.
//
// All input from the sandbox is untrusted. The package never adds, removes or
// returns a private key.
package sshagent
