package main

import (
	"embed"
	"runtime"
)

// embedded holds the guest program for this processor, if `make build` has put
// it there. A bottle from a plain `go build` lacks it and starts each session
// some 20 ms later.
//
//go:embed embedded
var embedded embed.FS

// guestProgram returns the embedded guest program, or nil.
func guestProgram() []byte {
	data, err := embedded.ReadFile("embedded/guest-" + runtime.GOARCH)
	if err != nil {
		return nil
	}
	return data
}
