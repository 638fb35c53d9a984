package provision

import (
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/manifest"
)

var testTrust = Trust{CA: []byte("bottle's\n"), Roots: []byte("host's\n")}

// written applies files to those of an image.
func written(t *testing.T, files []rootfile.File, image map[string]string) map[string]string {
	t.Helper()
	for _, f := range files {
		old, has := image[f.Path]
		if f.Existing && !has {
			continue
		}
		data := f.Data
		if f.Edit != nil {
			var before []byte
			if has {
				before = []byte(old)
			}
			var err error
			if data, err = f.Edit(before); err != nil {
				t.Fatal(err)
			}
		}
		image[f.Path] = string(data)
	}
	return image
}

// TestTrust: the authority is added to what the image and the user trust, and nothing of
// that is lost.
func TestTrust(t *testing.T) {
	const debian, fedora = "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"
	for _, c := range []struct {
		name        string
		env         []string // of the image
		image, want map[string]string
		set         map[string]string // environment
	}{
		{
			name: "Debian", image: map[string]string{debian: "image's\n"}, want: map[string]string{debian: "image's\nbottle's\n"},
			set: map[string]string{"SSL_CERT_FILE": debian, "REQUESTS_CA_BUNDLE": debian, "NODE_EXTRA_CA_CERTS": "/.bottle/ca.pem"},
		},
		{
			name: "Fedora", image: map[string]string{fedora: "image's"},
			want: map[string]string{fedora: "image's\nbottle's\n", debian: "image's\nbottle's\n"},
		},
		{name: "without authorities", image: map[string]string{}, want: map[string]string{debian: "host's\nbottle's\n", fedora: ""}},
		{
			name: "of the user", env: []string{"SSL_CERT_FILE=/own.pem", "CURL_CA_BUNDLE=/curl.pem", "NODE_EXTRA_CA_CERTS=/absent.pem"},
			image: map[string]string{debian: "image's\n", "/own.pem": "own\n", "/curl.pem": "curl\n"},
			want:  map[string]string{"/own.pem": "own\nbottle's\n", "/curl.pem": "curl\nbottle's\n", "/absent.pem": ""},
			set:   map[string]string{"SSL_CERT_FILE": "", "REQUESTS_CA_BUNDLE": "", "NODE_EXTRA_CA_CERTS": ""},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, img := testAgent(), Image{Home: "/home/x", WorkDir: "/workspace", Env: c.env}
			a.Trust = testTrust
			got := written(t, a.trustFiles(img), c.image)
			for path, want := range c.want {
				if got[path] != want {
					t.Errorf("%s is %q, want %q", path, got[path], want)
				}
			}
			env := a.Environ(img)
			for name, want := range c.set {
				i := slices.IndexFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
				if want == "" && i >= 0 || want != "" && !slices.Contains(env, name+"="+want) {
					t.Errorf("%s: want %q in %q", name, want, env)
				}
			}
		})
	}
}

// TestTrustLiteral: the manifest's own file is kept, and nothing changes without an
// authority.
func TestTrustLiteral(t *testing.T) {
	a, img := testAgent(Variable{Name: "GIT_SSL_CAINFO", Source: manifest.SourceLiteral, Literal: "/git.pem"}), Image{Home: "/home/x", WorkDir: "/workspace"}
	if files := a.trustFiles(img); files != nil || a.trustEnv(img) != nil {
		t.Errorf("without an authority: %v", files)
	}
	a.Trust = testTrust
	if got := written(t, a.trustFiles(img), map[string]string{"/git.pem": "git\n"}); got["/git.pem"] != "git\nbottle's\n" {
		t.Errorf("got %q", got["/git.pem"])
	}
	var ca []byte
	for _, f := range a.GuestFiles(img) {
		if f.Name == "ca.pem" {
			ca = f.Data
		}
	}
	if string(ca) != "bottle's\n" {
		t.Errorf("ca.pem is %q", ca)
	}
}
