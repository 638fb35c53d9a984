// Package worktree copies a directory of the user's into a bottle, with the git
// repository around it, and brings the agent's work back: as commits (Fetch), as changed
// files (Apply, Diff), or as single files (CopyOut, CopyIn).
//
// On the way in nothing of the repository's runs as root. git runs as the user, with its
// hooks, file system monitors and credential helpers off, and only to answer questions;
// everything is then read with the user's rights (internal/asuser), and the agent's
// repository gets a configuration of its own.
//
// On the way out everything that comes from the bottle is untrusted. It comes as three
// formats only, a list of files, a tar archive and a git pack (internal/filetree, git
// index-pack). None of the agent's configuration, hooks, attributes or links is used on
// the host. Every stream is bounded in bytes and time, and what it changes on the host is
// changed with the user's rights, without following links.
package worktree
