package netns

import (
	"context"
	"os"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"
)

// newExec runs plugins with a minimal environment. libcni would pass on this
// process's own, which may contain the caller's secrets.
func newExec() invoke.Exec {
	return cleanExec{&invoke.DefaultExec{RawExec: &invoke.RawExec{Stderr: os.Stderr}, PluginDecoder: version.PluginDecoder{}}}
}

type cleanExec struct{ invoke.Exec }

// ExecPlugin passes on the variables that the CNI specification defines, and PATH,
// with which a plugin finds programs such as iptables.
func (e cleanExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	foreign := func(kv string) bool {
		return !strings.HasPrefix(kv, "CNI_") && !strings.HasPrefix(kv, "PATH=")
	}
	return e.Exec.ExecPlugin(ctx, path, stdin, slices.DeleteFunc(slices.Clone(environ), foreign))
}
