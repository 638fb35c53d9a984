// Package agent holds the Dockerfile of the image that agents run on by default.
// It builds nothing itself.
package agent

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
)

//go:embed Dockerfile
var dockerfile []byte

// Label is on an image that was built from the Dockerfile: the Hash it had then.
// An image without it is somebody's own.
const Label = "bottle.agent-image"

// What an image built from the Dockerfile is; as it says there.
const (
	User    = "1000:1000"
	Command = "claude"
)

// Dockerfile is the file's content.
func Dockerfile() []byte { return append([]byte(nil), dockerfile...) }

// Hash tells one Dockerfile from another.
func Hash() string {
	sum := sha256.Sum256(dockerfile)
	return hex.EncodeToString(sum[:16])
}
