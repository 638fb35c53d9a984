package buildkit

import (
	"context"

	resources "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/util/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ownNetwork lets a RUN step use the network that this process has, as if the
// user had run the step's command on the host: names, mirrors and proxies of the
// host hold, and nothing is made that would have to be taken away again, no
// bridge, no rule, no sysctl. BuildKit's own providers make all three.
//
// The consequence: a step reaches what the host reaches, services on the host's
// loopback included, and abstract Unix sockets of its network namespace. A
// Dockerfile is trusted as a Makefile is. RUN --network=none gives a step none.
type ownNetwork struct{ path string }

func (p ownNetwork) New(context.Context, string, network.NamespaceOptions) (network.Namespace, error) {
	return p, nil
}

func (ownNetwork) Close() error { return nil }

// Set makes the step join this process's network namespace, which need not be
// containerd's.
func (p ownNetwork) Set(s *specs.Spec) error {
	for i, ns := range s.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = p.path
			return nil
		}
	}
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: p.path})
	return nil
}

func (ownNetwork) Sample() (*resources.NetworkSample, error) { return nil, nil }
