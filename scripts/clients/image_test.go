//go:build !clients

package clients

// image is the image of most tests, so that `make test` runs its tools too. secretsImage has a
// few more.
const (
	image        = "claude-bottle:latest"
	secretsImage = "bottle-tools:latest"
)

// tools are the tools of the table that the images have.
var (
	tools        = []string{"curl", "git", "apt"}
	secretsTools = []string{"curl", "git", "Node.js 24", "Python requests", "Python httpx"}
)
