package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/docker/cli/cli/config/credentials"
	"github.com/docker/cli/cli/config/types"
	"github.com/docker/docker-credential-helpers/client"
	helper "github.com/docker/docker-credential-helpers/credentials"

	"github.com/bot-bottle/bottle/internal/asuser"
)

// Docker Hub has a different name in Docker's configuration file.
const (
	dockerHub    = "registry-1.docker.io"
	dockerHubKey = "https://index.docker.io/v1/"
)

// Login identifies the user whose registry credentials are used: those that
// `docker login` stores in a file or in a credential helper. The zero Login has no
// credentials.
type Login struct {
	ConfigDir string // Docker's, ~/.docker
	// User is the user who owns the configuration, and Home that user's home. The
	// configuration is read with the user's rights, and a helper is the user's
	// program: it runs as the user, not as root under sudo.
	User asuser.User
	Home string
	// Environ is the caller's environment, passed to helpers.
	Environ []string
}

// loginStore answers the Transfer service's credential requests. Returning an error
// would hang the transfer, so errors are stored for later.
type loginStore struct {
	login Login

	mu    sync.Mutex
	err   error
	asked []string // hosts, in order
}

func (s *loginStore) GetCredentials(ctx context.Context, _, host string) (registry.Credentials, error) {
	username, secret, err := s.login.Find(ctx, host)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = errors.Join(s.err, err)
	s.asked = append(s.asked, host)
	return registry.Credentials{Host: host, Username: username, Secret: secret}, nil
}

// result returns the hosts that required credentials, and the error of reading them.
func (s *loginStore) result() (asked []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked, s.err
}

// Find returns the credentials for a registry host, empty if there are none. With an
// empty username the secret is an identity token.
func (l Login) Find(ctx context.Context, host string) (username, secret string, err error) {
	auth, err := l.find(ctx, host)
	if err != nil || auth.IdentityToken != "" {
		return "", auth.IdentityToken, err
	}
	return auth.Username, auth.Password, nil
}

func (l Login) find(ctx context.Context, host string) (types.AuthConfig, error) {
	if l.ConfigDir == "" {
		return types.AuthConfig{}, nil
	}
	var file *configfile.ConfigFile
	err := asuser.Run(l.User, func() (err error) {
		file, err = config.Load(l.ConfigDir)
		return err
	})
	if err != nil {
		return types.AuthConfig{}, fmt.Errorf("read registry logins in %s: %w", filepath.Join(l.ConfigDir, config.ConfigFileName), err)
	}
	key := host
	if host == dockerHub || host == "docker.io" {
		key = dockerHubKey
	}
	if name := helperOf(file, key); name != "" {
		return l.ask(ctx, name, key)
	}
	return credentials.NewFileStore(file).Get(key)
}

func helperOf(file *configfile.ConfigFile, key string) string {
	if name, ok := file.CredentialHelpers[key]; ok {
		return name
	}
	return file.CredentialsStore
}

// tokenUser is the user name with which a helper marks the secret as an identity
// token (docker-credential-helpers, README).
const tokenUser = "<token>"

func (l Login) ask(ctx context.Context, name, key string) (types.AuthConfig, error) {
	got, err := client.Get(func(args ...string) client.Program { return l.program(ctx, name, args) }, key)
	if helper.IsErrCredentialsNotFound(err) {
		return types.AuthConfig{}, nil
	}
	if err != nil {
		return types.AuthConfig{}, fmt.Errorf("ask docker-credential-%s for the login at %s: %w", name, key, err)
	}
	if got.Username == tokenUser {
		return types.AuthConfig{IdentityToken: got.Secret}, nil
	}
	return types.AuthConfig{Username: got.Username, Password: got.Secret}, nil
}

type helperProgram struct{ cmd *exec.Cmd }

func (p helperProgram) Output() ([]byte, error) { return p.cmd.Output() }
func (p helperProgram) Input(in io.Reader)      { p.cmd.Stdin = in }

func (l Login) program(ctx context.Context, name string, args []string) client.Program {
	cmd := exec.CommandContext(ctx, "docker-credential-"+filepath.Base(name), args...)
	for _, v := range l.Environ {
		if !strings.HasPrefix(v, "HOME=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "HOME="+l.Home)
	if l.User.UID != syscall.Getuid() {
		groups := make([]uint32, len(l.User.Groups))
		for i, g := range l.User.Groups {
			groups[i] = uint32(g)
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(l.User.UID), Gid: uint32(l.User.GID), Groups: groups}}
	}
	return helperProgram{cmd}
}
