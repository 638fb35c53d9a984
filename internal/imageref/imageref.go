package imageref

import (
	"fmt"

	"github.com/distribution/reference"
)

// normalise gives a short name its registry and tag, as docker does.
func Normalize(name string) (string, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("not an image's name: %w", err)
	}
	return named.String(), nil
}

// Familiar is a reference as docker shows it.
func Familiar(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarString(named)
}
