//go:build clients

package clients

// image has all tools of the table.
const image = "bottle-clients:latest"

var tools []string // all
