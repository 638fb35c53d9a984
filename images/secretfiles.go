package images

import (
	"context"
	"errors"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/asuser"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// CredentialFiles lists the files of a directory that Derive would include and that
// are known to hold credentials, such as .env, .npmrc or private keys, by their paths
// relative to the directory. It recognises them by name; of names that are also used
// for other purposes, only files that contain a private key are listed, and of git's
// configuration only files with a password or a token. It does not search for secrets in
// other files. The directory is read with the rights of the caller. The error is
// Derive's; when ctx ends, it is its cause.
func CredentialFiles(ctx context.Context, dir string, caller asuser.User) ([]string, error) {
	t, err := readTree(ctx, dir, caller)
	if err != nil {
		return nil, err
	}
	var found []string
	err = asuser.Run(caller, func() error {
		for i := range t.entries {
			e := &t.entries[i]
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if e.stat.Mode&unix.S_IFMT == unix.S_IFREG && t.holdsCredentials(e) {
				found = append(found, e.name)
			}
		}
		return nil
	})
	return found, errors.Join(err, t.close())
}

// credentialNames are names of files that hold credentials, with their parent
// directory where the name alone is ambiguous.
var credentialNames = []string{
	".env", ".envrc", ".npmrc", ".pypirc", ".netrc", "_netrc", ".git-credentials", ".pgpass", ".my.cnf", ".htpasswd",
	".dockercfg", ".docker/config.json", ".docker/auth.json", ".aws/credentials", ".azure/accessTokens.json", ".kube/config", "kubeconfig",
	".cargo/credentials", ".cargo/credentials.toml", ".gem/credentials", ".m2/settings.xml", ".gradle/gradle.properties",
	".config/gh/hosts.yml", ".vault-token", ".terraformrc", "credentials.json", "application_default_credentials.json",
	"client_secret.json", "service-account.json", "serviceAccountKey.json", ".claude/.credentials.json", ".credentials.json",
}

// credentialPatterns are for path.Match, on the file's name.
var credentialPatterns = []string{
	".env.*", "*.env", "client_secret_*.json", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.tfstate", "secrets.y*ml",
}

// templates are endings of files that only show which credentials are needed.
var templates = []string{".example", ".sample", ".template", ".dist", ".defaults"}

// keyPatterns are names of private keys that other files have as well.
var keyPatterns = []string{"*.pem", "*.key", "id_*"}

func (t *tree) holdsCredentials(e *treeEntry) bool {
	base := path.Base(e.name)
	matches := func(pattern string) bool {
		ok, _ := path.Match(pattern, base) // the patterns are valid
		return ok
	}
	switch {
	case slices.ContainsFunc(templates, func(end string) bool { return strings.HasSuffix(base, end) }):
		return false
	case slices.ContainsFunc(credentialNames, func(name string) bool { return name == e.name || strings.HasSuffix(e.name, "/"+name) }),
		slices.ContainsFunc(credentialPatterns, matches):
		return true
	case strings.HasSuffix(base, ".pub"):
		return false
	}
	switch {
	case slices.ContainsFunc(keyPatterns, matches):
		return t.contains(e.name, privateKey())
	case isGitConfig(e.name):
		return t.contains(e.name, gitLogin())
	}
	return false
}

// privateKey matches a private key in PEM (RFC 7468, OpenSSH).
var privateKey = lazyregexp.New("PRIVATE KEY-----")

// gitLogin matches a password in a remote's URL, a token in place of the user's name,
// and the header with a token that CI systems write into the configuration of a checkout.
var gitLogin = lazyregexp.New(`(?i)://[^/\s@]*:[^/\s@]+@|://[^/\s@]{20,}@|extraheader\s*=\s*"?authorization:`)

// isGitConfig reports whether a file is the configuration of a repository or of a
// submodule's repository.
func isGitConfig(name string) bool {
	dir, base := path.Split("/" + name)
	return base == "config" && (strings.HasSuffix(dir, "/.git/") || strings.Contains(dir, "/.git/modules/"))
}

// maxSearched is how much of a file is searched, in bytes.
const maxSearched = 64 << 10

// contains reports whether the beginning of a file matches a pattern. A file that cannot
// be read is reported, too.
func (t *tree) contains(name string, pattern *regexp.Regexp) bool {
	fd, err := openFD(t.root, name, unix.O_NONBLOCK)
	if err != nil {
		return !changedSince(err)
	}
	defer func() { _ = unix.Close(fd) }()
	data := make([]byte, maxSearched)
	n := 0
	for n < len(data) {
		m, err := unix.Read(fd, data[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return true
		}
		if m == 0 {
			break
		}
		n += m
	}
	return pattern.Match(data[:n])
}
