//go:build clients

package clients

// image has all tools of the table, and secretsImage all of the test of secrets.
const (
	image        = "bottle-clients:latest"
	secretsImage = image
)

var tools, secretsTools []string // all
