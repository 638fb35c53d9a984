package manifest

import (
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// EnvNameHint is the hint for an invalid variable name.
const EnvNameHint = "use letters, digits and _ only, and no digit first"

// ValidEnvName reports whether name is a valid variable name: ASCII letters, digits and
// underscores, with no digit first (POSIX.1-2024, 3.216 Name).
func ValidEnvName(name string) bool { return envName().MatchString(name) }

var envName = lazyregexp.New(`^[A-Za-z_][A-Za-z0-9_]*$`)

// ReservedEnvName reports whether only bottle may set a variable.
func ReservedEnvName(name string) bool {
	return slices.Contains([]string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"}, strings.ToUpper(name))
}
