// Package imageref converts image references between the forms of docker and containerd.
package imageref

import (
	"fmt"

	"github.com/distribution/reference"
)

// Normalize adds the default registry and tag to a short name, as docker does.
func Normalize(name string) (string, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("invalid image name: %w", err)
	}
	return named.String(), nil
}

// Familiar returns a reference in docker's short form.
func Familiar(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(named)
}
