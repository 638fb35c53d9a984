// Package registryerr interprets errors of image registries. containerd and BuildKit
// return most of them as text.
package registryerr

import (
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// Denied are parts of errors that mean that a registry refused access.
var Denied = []string{
	"401 Unauthorized", "403 Forbidden", "authorization failed", "insufficient_scope", "no basic auth credentials", "unauthorized:", "denied:",
}

// request matches the host in the URL of a registry's API.
var request = lazyregexp.New(`https?://([^/\s"]+)/v2/`)

// Docker Hub's API has another name than users know it by.
const dockerHubAPI, dockerHub = "registry-1.docker.io", "docker.io"

// DeniedBy returns the host that refused access: a registry, or a mirror that is
// configured for it. It is empty if err is not a refusal, or if neither the error nor
// asked, the hosts that required credentials in order, identify the host.
func DeniedBy(err error, asked []string) string {
	if err == nil {
		return ""
	}
	text := strings.ReplaceAll(err.Error(), "permission denied", "") // the kernel's
	denied := false
	for _, part := range Denied {
		denied = denied || strings.Contains(text, part)
	}
	if !denied {
		return ""
	}
	host := ""
	if m := request().FindStringSubmatch(text); m != nil {
		host = m[1]
	} else if len(asked) > 0 {
		host = asked[len(asked)-1]
	}
	if host == dockerHubAPI {
		return dockerHub
	}
	return host
}
