// Package agent holds the Dockerfile of the image that agents run on by default.
// It builds nothing itself.
package agent

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
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

// Hash tells one Dockerfile, and the build arguments that it is built with, from
// another.
func Hash(args map[string]string) string {
	h := sha256.New()
	h.Write(dockerfile) // a hash's Write never fails
	for _, name := range slices.Sorted(maps.Keys(args)) {
		_, _ = fmt.Fprintf(h, "\x00%s=%s", name, args[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
