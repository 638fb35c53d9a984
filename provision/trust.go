package provision

import (
	"bytes"
	"slices"

	"github.com/bot-bottle/bottle/internal/rootfile"
)

// Trust is what an agent needs to trust the authority of a proxy that terminates TLS.
type Trust struct {
	// CA is the certificate of the authority, in PEM; empty: none.
	CA []byte
	// Roots are public authorities in PEM, for an image that has none.
	Roots []byte
}

// GuestCA is the file with the certificate of the bottle's authority alone.
const GuestCA = GuestDir + "/ca.pem"

// systemBundle is the file with the authorities that programs trust in Debian, Alpine and
// Arch. It is created in other images, because SSL_CERT_FILE refers to it.
const systemBundle = "/etc/ssl/certs/ca-certificates.crt"

// SystemBundles returns the paths at which distributions have the authorities that
// programs trust.
func SystemBundles() []string { return append([]string{systemBundle}, otherBundles...) }

// otherBundles are those of other distributions, or other names of the same file, as in
// Go's crypto/x509 (root_linux.go).
var otherBundles = []string{
	"/etc/pki/tls/certs/ca-bundle.crt",
	"/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem",
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"/etc/ssl/cert.pem",
}

// bundleVariables are variables with the path of a file of authorities. Where the manifest
// or the image sets one, the authority is added to that file.
var bundleVariables = []string{
	"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT",
	"NIX_SSL_CERT_FILE", "DENO_CERT", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
}

// trustFiles add the authority to the files of authorities in the image.
func (a Agent) trustFiles(img Image) []rootfile.File {
	if len(a.Trust.CA) == 0 {
		return nil
	}
	var bundle []byte // the first that the image has
	edit := func(path string) rootfile.File {
		return rootfile.File{Path: path, Mode: 0o644, Root: true, Existing: true, Edit: func(old []byte) ([]byte, error) {
			merged := WithCA(old, a.Trust.CA)
			if bundle == nil {
				bundle = merged
			}
			return merged, nil
		}}
	}
	files := []rootfile.File{edit(systemBundle)}
	for _, path := range otherBundles {
		files = append(files, edit(path))
	}
	files = append(files,
		rootfile.File{Path: systemBundle, Mode: 0o644, Root: true, Edit: func(old []byte) ([]byte, error) {
			switch {
			case old != nil:
				return WithCA(old, a.Trust.CA), nil
			case bundle != nil:
				return bundle, nil
			}
			return WithCA(a.Trust.Roots, a.Trust.CA), nil
		}},
		// For update-ca-certificates, which writes the system's bundle again.
		rootfile.File{Path: "/usr/local/share/ca-certificates/bottle.crt", Mode: 0o644, Root: true, Data: a.Trust.CA},
	)
	for _, name := range bundleVariables {
		if path, ok := a.setting(img, name); ok {
			files = append(files, rootfile.File{Path: path, Mode: 0o644, Root: true, Existing: true, Edit: func(old []byte) ([]byte, error) {
				return WithCA(old, a.Trust.CA), nil
			}})
		}
	}
	return append(files, a.javaFiles(img)...)
}

// WithCA adds a certificate to a bundle, unless it is there already.
func WithCA(bundle, ca []byte) []byte {
	if bytes.Contains(bundle, ca) {
		return bundle
	}
	out := slices.Clone(bundle)
	if len(out) > 0 && out[len(out)-1] != '\n' {
		out = append(out, '\n')
	}
	return append(out, ca...)
}

// trustEnv returns defaults for programs with authorities of their own: Node.js adds the
// authority to them, and Python's certifi and others use the system's instead.
func (a Agent) trustEnv(img Image) []string {
	if len(a.Trust.CA) == 0 {
		return nil
	}
	env := []string{"NODE_EXTRA_CA_CERTS=" + GuestCA, "DENO_CERT=" + GuestCA, "SSL_CERT_FILE=" + systemBundle}
	if !a.sets(img, "CURL_CA_BUNDLE") { // requests uses it without the other
		env = append(env, "REQUESTS_CA_BUNDLE="+systemBundle)
	}
	return env
}
