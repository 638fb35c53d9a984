package manifest

import (
	"regexp"
	"slices"
	"strings"
)

// ValidEnvName tells whether name can be a variable's: letters, digits and
// underscores of ASCII, no digit first (POSIX.1-2024, 3.216 Name).
func ValidEnvName(name string) bool { return envName.MatchString(name) }

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// reserved tells whether a variable is bottle's to set.
func ReservedEnvName(name string) bool {
	return slices.Contains([]string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"}, strings.ToUpper(name))
}
