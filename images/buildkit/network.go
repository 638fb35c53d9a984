package buildkit

import (
	"context"

	resources "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/util/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ownNetwork runs RUN steps in this process's network, as if the user had run the
// step's command on the host: the host's resolvers, mirrors and proxies apply.
//
// As a consequence a step can reach whatever the host can reach, including services
// on the host's loopback and abstract Unix sockets. A Dockerfile must be trusted like
// a Makefile. RUN --network=none disables the network for a step.
type ownNetwork struct{ path string }

func (p ownNetwork) New(context.Context, string, network.NamespaceOptions) (network.Namespace, error) {
	return p, nil
}

func (ownNetwork) Close() error { return nil }

// Set makes the step join this process's network namespace, which may differ from
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
