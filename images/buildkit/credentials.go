package buildkit

import (
	"context"
	"fmt"

	"github.com/docker/cli/cli/config/types"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/auth/authprovider"
	"google.golang.org/grpc"

	"github.com/bot-bottle/bottle/internal/registryerr"
)

// DeniedError means that a registry, or a mirror of one, refused access.
type DeniedError struct {
	Host string // of the registry or mirror that refused
	Err  error
}

func (e *DeniedError) Error() string { return fmt.Sprintf("access denied by %s: %v", e.Host, e.Err) }

func (e *DeniedError) Unwrap() error { return e.Err }

// registryError recognises a refusal in the text of BuildKit's error.
func registryError(err error, asked []string) error {
	if host := registryerr.DeniedBy(err, asked); host != "" {
		return &DeniedError{Host: host, Err: err}
	}
	return err
}

// find returns the caller's credentials for a host, and records that they were
// required.
func (in *inputs) find(ctx context.Context, host string) (username, secret string, err error) {
	in.mu.Lock()
	in.asked = append(in.asked, host)
	in.mu.Unlock()
	if in.req.Credentials == nil {
		return "", "", nil
	}
	return in.req.Credentials(ctx, host)
}

// credentials answers the build's requests for credentials. The BuildKit in this
// process receives them and uses hosts.toml's certificates to get tokens. A buildkitd
// receives tokens only: it may be another host's.
func (in *inputs) credentials() bksession.Attachable {
	if in.req.buildkitd {
		return authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
			AuthConfigProvider: func(ctx context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
				username, secret, err := in.find(ctx, host)
				if username == "" {
					return types.AuthConfig{IdentityToken: secret}, err
				}
				return types.AuthConfig{Username: username, Password: secret}, err
			},
		})
	}
	return &authServer{in: in}
}

// authServer returns credentials. Its other methods are not implemented, so BuildKit
// gets tokens itself.
type authServer struct {
	auth.UnimplementedAuthServer
	in *inputs
}

func (s *authServer) Register(server *grpc.Server) { auth.RegisterAuthServer(server, s) }

func (s *authServer) Credentials(ctx context.Context, req *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	username, secret, err := s.in.find(ctx, req.Host)
	if err != nil {
		return nil, err
	}
	return &auth.CredentialsResponse{Username: username, Secret: secret}, nil
}
