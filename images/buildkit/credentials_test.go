package buildkit

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/labtest"
)

const upstream = "upstream.test"

// mirrorHosts returns a hosts directory that makes the registry a mirror of upstream.
func mirrorHosts(t *testing.T, host, ca string) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, upstream), 0o755))
	must(t, os.WriteFile(filepath.Join(dir, upstream, "hosts.toml"),
		fmt.Appendf(nil, "server = \"https://%s\"\n[host.\"https://%s\"]\n  ca = %q\n  capabilities = [\"pull\", \"resolve\"]\n", upstream, host, ca), 0o600))
	return dir
}

// dockerLogin returns the find function of a Docker configuration with one login.
func dockerLogin(t *testing.T, host, user, password string) func(context.Context, string) (string, string, error) {
	t.Helper()
	dir := t.TempDir()
	data, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]any{"username": user, "password": password}}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600))
	return images.Login{ConfigDir: dir}.Find
}

// push stores an image in a registry and returns a Dockerfile that copies its file. The
// image is not in the store.
func (b *builder) push(r *labtest.Registry, remote images.Remote, name string) (dockerfile string) {
	b.t.Helper()
	given := []byte(b.t.Name())
	b.t.Run("push", func(t *testing.T) { // its end removes the image
		ref := r.Host + "/" + name
		labtest.PutImage(t, ref, ocispec.ImageConfig{}, map[string][]byte{"given": given})
		_, err := images.New(b.c, b.cfg.Namespace, "").Push(b.ctx, ref, remote)
		must(t, err)
	})
	return fmt.Sprintf("FROM scratch\nCOPY --from=%s/%s given /\n", upstream, name)
}

// checkMirror builds from a mirror without a login, with a wrong and with the right
// one. The error names the mirror, not the registry.
func (b *builder) checkMirror(host, user, password string) {
	b.t.Helper()
	for name, c := range map[string]struct {
		find func(context.Context, string) (string, string, error)
		good bool
	}{
		"no credentials":        {nil, false},
		"another host's login":  {dockerLogin(b.t, upstream, user, password), false},
		"wrong password":        {dockerLogin(b.t, host, user, "wrong"), false},
		"the mirror's password": {dockerLogin(b.t, host, user, password), true},
	} {
		req := Request{Names: []string{b.ref()}, Credentials: c.find, NoCache: true}
		_, err := b.build(req)
		if c.good {
			if err != nil {
				b.t.Fatalf("%s: %v\n%s", name, err, b.log.String())
			}
			if _, files := b.read(b.ref(), "given"); files["given"] != b.t.Name() {
				b.t.Errorf("%s: the image contains %q", name, files)
			}
			continue
		}
		denied, ok := errors.AsType[*DeniedError](err)
		if !ok || denied.Host != host || !strings.Contains(err.Error(), "access denied by "+host) || strings.Contains(err.Error(), password) {
			b.t.Errorf("%s: got %v, want a DeniedError of %s", name, err, host)
		}
	}
}

// TestMirror: base images come from the mirror that hosts.toml configures, with the
// login for the mirror.
func TestMirror(t *testing.T) {
	b := newBuilder(t)
	r := labtest.PrivateRegistry(t)
	b.write("Dockerfile", b.push(r, images.Remote{HostsDir: r.HostsDir(t), Login: images.Login{ConfigDir: configDir(t, r)}}, "mirrored:1"))
	b.bad(Request{}, upstream) // not without hosts.toml
	b.cfg.HostsDir = mirrorHosts(t, r.Host, r.CA)
	b.checkMirror(r.Host, r.User, r.Password)
	b.cfg.HostsDir = filepath.Join(b.dir, "missing")
	b.bad(Request{}, "read registry settings in "+b.cfg.HostsDir)
	b.cfg.HostsDir = ""
}

func configDir(t *testing.T, r *labtest.Registry) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "config.json"),
		fmt.Appendf(nil, `{"auths":{%q:{"username":%q,"password":%q}}}`, r.Host, r.User, r.Password), 0o600))
	return dir
}

// TestMirrorToken: the same with a mirror that requires tokens, from a server whose
// certificate only hosts.toml trusts.
func TestMirrorToken(t *testing.T) {
	b := newBuilder(t)
	plain := labtest.PlainRegistry(t)
	b.write("Dockerfile", b.push(plain, images.Remote{}, "token:1"))
	const user, password = "reader", "correct horse"
	token := digest.FromString(t.Name()).Encoded()
	to := &url.URL{Scheme: "http", Host: plain.Host}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(to) }}
	mirror := httptest.NewUnstartedServer(nil)
	mirror.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		u, p, basic := r.BasicAuth()
		switch {
		case r.URL.Path == "/token" && (basic && u == user && p == password || r.PostForm.Get("username") == user && r.PostForm.Get("password") == password):
			_ = json.NewEncoder(w).Encode(map[string]string{"token": token, "access_token": token})
		case r.URL.Path == "/token":
			http.Error(w, "wrong credentials", http.StatusUnauthorized)
		case r.Header.Get("Authorization") != "Bearer "+token:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf("Bearer realm=\"https://%s/token\",service=\"test\"", r.Host))
			http.Error(w, "token required", http.StatusUnauthorized)
		default:
			proxy.ServeHTTP(w, r)
		}
	})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	cert, err := tls.LoadX509KeyPair(labtest.Certificate(t, ca))
	must(t, err)
	mirror.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	mirror.StartTLS()
	defer mirror.Close()
	host := mirror.Listener.Addr().String()
	b.cfg.HostsDir = mirrorHosts(t, host, ca)
	b.checkMirror(host, user, password)
	b.cfg.HostsDir = ""
}
