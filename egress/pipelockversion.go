package egress

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// Pipelock's images. Releases since 3.8.0 are published under a new name.
const (
	PipelockImage    = "ghcr.io/pipelab-org/pipelock"
	PipelockOldImage = "ghcr.io/luckypipewrench/pipelock"
	// DefaultPipelockVersion is used if nothing else is configured.
	DefaultPipelockVersion = "3.8.0"
)

// PipelockVersion is a release of pipelock. A configuration can be rendered for
// 2.0.0 and later 2.x and 3.x releases.
type PipelockVersion struct{ Major, Minor, Patch int }

// Releases in which pipelock's configuration or behavior changed in a way that
// matters for what is rendered. The 2.x ones were observed by running, the 3.x ones
// are from pipelock's configuration reference and changelog.
var (
	pipelockFirst = PipelockVersion{2, 0, 0}
	// ssrf.ip_allowlist, and trusted_domains that hold where pipelock dials.
	pipelockPrivate = PipelockVersion{2, 1, 1}
	// media_policy; unknown keys are fatal.
	pipelockStrictKeys = PipelockVersion{2, 2, 0}
	// 3.x checks the form and breadth of all host patterns. Which 3.x release
	// began to is not known.
	pipelockStrictHosts = PipelockVersion{3, 0, 0}
	// /metrics and /stats are off unless metrics_listen is set. Before, they are
	// on the agent's port unless it is set.
	pipelockNoStats = PipelockVersion{3, 8, 0}
	pipelockEnd     = PipelockVersion{4, 0, 0}
)

// pipelockRun are the releases that bottle was run with; the configuration for
// others is rendered from pipelock's documentation.
var pipelockRun = []PipelockVersion{{2, 0, 0}, {2, 1, 2}, {2, 2, 0}, {2, 3, 0}}

var (
	pipelockVersionForm = lazyregexp.New(`^(\d{1,4})\.(\d{1,4})\.(\d{1,4})$`)
	pipelockTagForm     = lazyregexp.New(`^v?(\d+\.\d+\.\d+)([-+].*)?$`)
)

// ParsePipelockVersion parses a version such as 2.3.0. The error is a
// [*PipelockVersionError] if it is not one that is supported.
func ParsePipelockVersion(version string) (PipelockVersion, error) {
	m := pipelockVersionForm().FindStringSubmatch(version)
	if m == nil {
		return PipelockVersion{}, &PipelockVersionError{Version: version}
	}
	var n [3]int
	for i := range n {
		n[i], _ = strconv.Atoi(m[i+1]) // digits only
	}
	v := PipelockVersion{n[0], n[1], n[2]}
	if !v.atLeast(pipelockFirst) || v.atLeast(pipelockEnd) {
		return PipelockVersion{}, &PipelockVersionError{Version: version}
	}
	return v, nil
}

// PipelockVersionOfTag returns the version in the tag of pipelock's image, such as
// 2.3.0, v2.3.0 or 2.3.0-amd64. The error is a [*PipelockVersionError] if there is
// none, as in latest or 3: the caller must not guess, because a configuration for
// another version may keep pipelock from starting or, worse, mean something else.
func PipelockVersionOfTag(tag string) (PipelockVersion, error) {
	m := pipelockTagForm().FindStringSubmatch(tag)
	if m == nil {
		return PipelockVersion{}, &PipelockVersionError{Tag: tag, NoVersion: true}
	}
	return ParsePipelockVersion(m[1])
}

func (v PipelockVersion) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

func (v PipelockVersion) atLeast(o PipelockVersion) bool {
	return cmp.Or(cmp.Compare(v.Major, o.Major), cmp.Compare(v.Minor, o.Minor), cmp.Compare(v.Patch, o.Patch)) >= 0
}

// WasRun reports whether bottle was run with this release, rather than its
// configuration only rendered from pipelock's documentation.
func (v PipelockVersion) WasRun() bool { return slices.Contains(pipelockRun, v) }

// Image is the name of the release's image.
func (v PipelockVersion) Image() string {
	if v.atLeast(pipelockNoStats) {
		return PipelockImage + ":" + v.String()
	}
	return PipelockOldImage + ":" + v.String()
}

// PipelockVersionError is the error of a version that is unknown, or not stated.
type PipelockVersionError struct {
	Version string // as it was given
	// Tag is set instead, with NoVersion, if an image's tag contains no version.
	Tag       string
	NoVersion bool
}

func (e *PipelockVersionError) Error() string {
	switch {
	case e.NoVersion && e.Tag == "":
		return "unknown version of pipelock: its image has no tag"
	case e.NoVersion:
		return fmt.Sprintf("unknown version of pipelock: its image's tag %q contains none", shorten(e.Tag))
	}
	return fmt.Sprintf("unknown version of pipelock %q: expected one such as %s (2.0.0 to 3.x)", shorten(e.Version), DefaultPipelockVersion)
}

// Hint returns advice for the user.
func (e *PipelockVersionError) Hint() string {
	if e.NoVersion {
		return "state the version of pipelock in the image as proxy.version in the manifest, or use a tag such as " + DefaultPipelockVersion
	}
	return "use an image of pipelock 2.x or 3.x, or the built-in proxy"
}
