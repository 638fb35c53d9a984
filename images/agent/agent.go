// Package agent contains the Dockerfile of the default agent image. It does not
// build it.
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

// Label marks an image built from the Dockerfile and holds its Hash at that time. An
// image without it belongs to the user.
const Label = "bottle.agent-image"

// User and command of the image, as set in the Dockerfile.
const (
	User    = "1000:1000"
	Command = "claude"
)

// Dockerfile returns a copy of the file's content.
func Dockerfile() []byte { return append([]byte(nil), dockerfile...) }

// Hash identifies the Dockerfile's content together with its build arguments.
func Hash(args map[string]string) string {
	h := sha256.New()
	h.Write(dockerfile) // a hash's Write never fails
	for _, name := range slices.Sorted(maps.Keys(args)) {
		_, _ = fmt.Fprintf(h, "\x00%s=%s", name, args[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}
