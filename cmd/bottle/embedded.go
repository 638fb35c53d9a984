package main

import (
	"embed"
	"io"
	"io/fs"
	"runtime"
)

// embedded holds the programs for this processor that bottle uses in sandboxes and as
// proxies, if `make build` has put them there. A bottle from a plain `go build` lacks them,
// starts each session some 20 ms later, and needs more memory.
//
//go:embed embedded
var embedded embed.FS

// embeddedProgram returns a function that opens an embedded program, or nil. Most commands
// need none of their megabytes.
func embeddedProgram(name string) func() (io.ReadCloser, error) {
	file := "embedded/" + name + "-" + runtime.GOARCH
	if _, err := fs.Stat(embedded, file); err != nil {
		return nil
	}
	return func() (io.ReadCloser, error) { return embedded.Open(file) }
}
