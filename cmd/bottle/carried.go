package main

import (
	"embed"
	"runtime"
)

// carried holds the guest program for this processor, if `make build` has put
// it there. A plain `go build` makes a bottle that works and starts its sessions
// some 20 ms later.
//
//go:embed carried
var carried embed.FS

// guestProgram is nil if there is none.
func guestProgram() []byte {
	data, err := carried.ReadFile("carried/guest-" + runtime.GOARCH)
	if err != nil {
		return nil
	}
	return data
}
