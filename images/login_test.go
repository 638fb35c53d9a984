package images_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/asuser"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestCredentialHelper: a credential helper provides the password and runs as the user
// who owns the configuration.
func TestCredentialHelper(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	r := labtest.PrivateRegistry(t)
	p := publish(ctx, t, c, s, r, "helped:1")
	dir := t.TempDir()
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	must(t, os.Chmod(dir, 0o777))
	script := fmt.Sprintf("#!/bin/sh\nread host\nid -u >%q\necho \"$HOME $host\" >>%[1]q\nprintf '{\"ServerURL\":\"%%s\",\"Username\":%q,\"Secret\":%q}' \"$host\"\n",
		filepath.Join(dir, "asked"), r.User, r.Password)
	must(t, os.WriteFile(filepath.Join(dir, "docker-credential-lab"), []byte(script), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), fmt.Appendf(nil, `{"credHelpers":{%q:"lab"}}`, r.Host), 0o600))
	must(t, os.Chown(filepath.Join(dir, "config.json"), 4242, 4242))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	p.remote.Login = images.Login{ConfigDir: dir, Home: "/home/of-user", User: asuser.User{UID: 4242, GID: 4242}, Environ: os.Environ()}
	if _, err := s.Pull(ctx, p.ref, p.remote); err != nil {
		t.Fatal(err)
	}
	asked, err := os.ReadFile(filepath.Join(dir, "asked"))
	if want := "4242\n/home/of-user " + r.Host + "\n"; err != nil || string(asked) != want {
		t.Errorf("the helper saw %q, %v; want %q", asked, err, want)
	}
	drop(ctx, t, c, p.ref)
}

// TestLoginOfAnotherUser: the Docker configuration is read with the user's rights. The
// control reads the same one as root.
func TestLoginOfAnotherUser(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	r := labtest.PrivateRegistry(t)
	p := publish(ctx, t, c, s, r, "other:1")
	must(t, os.Chmod(filepath.Dir(p.remote.Login.ConfigDir), 0o755))
	p.remote.Login.User = asuser.User{UID: 4242, GID: 4242}
	_, err := s.Pull(ctx, p.ref, p.remote)
	if !errors.Is(err, images.ErrDenied) || !strings.Contains(err.Error(), "config.json: permission denied") {
		t.Errorf("with root's configuration: %v", err)
	}
	p.remote.Login.User = asuser.User{}
	if _, err := s.Pull(ctx, p.ref, p.remote); err != nil {
		t.Fatalf("control: %v", err)
	}
	drop(ctx, t, c, p.ref)
}

// TestMirrorDenied: the mirror of a registry requires a login. The error names the
// mirror, and the login for the mirror is used.
func TestMirrorDenied(t *testing.T) {
	leakcheck.Check(t)
	ctx, c, s := connect(t)
	r := labtest.PrivateRegistry(t)
	p := publish(ctx, t, c, s, r, "mirrored:1")
	const upstream = "upstream.test"
	hosts := t.TempDir()
	must(t, os.Mkdir(filepath.Join(hosts, upstream), 0o755))
	must(t, os.WriteFile(filepath.Join(hosts, upstream, "hosts.toml"),
		fmt.Appendf(nil, "server = \"https://%s\"\n[host.\"https://%s\"]\n  ca = %q\n  capabilities = [\"pull\", \"resolve\"]\n", upstream, r.Host, r.CA), 0o600))
	p.remote.HostsDir = hosts
	ref := upstream + "/mirrored:1"
	good := p.remote.Login
	for name, l := range map[string]images.Login{"none": {}, "wrong": login(t, r, "wrong")} {
		p.remote.Login = l
		_, err := s.Pull(ctx, ref, p.remote)
		denied, ok := errors.AsType[*images.DeniedError](err)
		if !ok || denied.Host != r.Host || !errors.Is(err, images.ErrDenied) || !strings.Contains(err.Error(), ref+" from mirror "+r.Host) {
			t.Errorf("login %s: %v", name, err)
		}
	}
	p.remote.Login = good
	if _, err := s.Pull(ctx, ref, p.remote); err != nil {
		t.Fatal(err)
	}
	drop(ctx, t, c, ref)
	// Without a mirror, it is the registry.
	_, err := s.Pull(ctx, p.ref, images.Remote{HostsDir: r.HostsDir(t)})
	if denied, ok := errors.AsType[*images.DeniedError](err); !ok || denied.Host != r.Host || strings.Contains(err.Error(), "mirror ") {
		t.Errorf("registry: %v", err)
	}
}
