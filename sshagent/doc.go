// Package sshagent is the ssh agent that a bottle's agent sees: it holds no key
// inside, and outside it signs for the hosts that a key is listed for and for
// nothing else. It speaks the agent protocol over one stream from inside
// (relay.go), finds out whom a signature is for (bind.go), and reads what a user
// has: private keys, an agent of their own, known hosts.
//
// What comes from inside is an adversary's. The package never adds, removes or
// hands out a key.
package sshagent
