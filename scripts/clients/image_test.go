//go:build !clients

package clients

// image is the image of most tests, so that `make test` runs its tools too.
const image = "claude-bottle:latest"

// tools are the tools of the table that the image has.
var tools = []string{"curl", "git", "apt"}
