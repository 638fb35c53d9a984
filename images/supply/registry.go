package supply

import (
	"errors"
	"fmt"
	"strings"

	"github.com/distribution/reference"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/imageref"
)

func (c Config) remote(user caller.Caller) images.Remote {
	return images.Remote{HostsDir: c.HostsDir, Progress: c.Progress, Login: login(user)}
}

// login returns the caller's registry credentials.
func login(c caller.Caller) images.Login {
	return images.Login{ConfigDir: c.DockerConfigDir(), Home: c.Home, User: c.User(), Environ: c.Environment()}
}

func imageName(name string) (string, error) {
	ref, err := imageref.Normalize(name)
	if err != nil {
		return "", &hint.Error{Err: fmt.Errorf("%q is %w", name, err), Hint: "use NAME, NAME:TAG or NAME@DIGEST, prefixed with the registry"}
	}
	return ref, nil
}

func withDigest(ref, digest string) string {
	if strings.Contains(ref, "@") {
		return ref
	}
	return ref + "@" + digest
}

func loginHint(host string) string {
	return "check the name, and log in to " + host + ": run docker login, or add an entry to ~/.docker/config.json, as the user who runs bottle"
}

// Hint adds a hint to an error about an image.
func Hint(ref string, err error) error {
	fix := ""
	host := "the registry"
	if named, perr := reference.ParseNormalizedNamed(ref); perr == nil {
		host = reference.Domain(named)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, images.ErrMissing):
		fix = "bottle images lists the available images"
	case errors.Is(err, images.ErrIncomplete):
		fix = "bottle pull fetches the missing parts, bottle build builds it again"
	case errors.Is(err, images.ErrPlatform):
		fix = "use an image for this host's platform"
	case errors.Is(err, images.ErrNotFound):
		fix = "check its name and tag"
	case errors.Is(err, images.ErrDenied):
		if denied, ok := errors.AsType[*images.DeniedError](err); ok {
			host = denied.Host // may be a mirror
		}
		fix = loginHint(host)
	case errors.Is(err, images.ErrUntrusted):
		fix = "set its certificate authority as ca in " + images.DefaultHostsDir + "/" + host + "/hosts.toml"
	case errors.Is(err, images.ErrUnreachable):
		fix = "check the network and the registry's name; a registry without TLS must be configured in " + images.DefaultHostsDir + "/" + host + "/hosts.toml"
	case errors.Is(err, images.ErrCorrupt):
		fix = "try again; if the error persists, the registry's copy is damaged: push it again"
	case errors.Is(err, images.ErrLayer):
		fix = "the image is malformed or malicious: use another one"
	case errors.Is(err, images.ErrNoSpace):
		fix = "free space: remove images with bottle rmi"
	default:
		return err
	}
	return &hint.Error{Err: err, Hint: fix}
}
