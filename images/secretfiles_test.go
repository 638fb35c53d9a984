package images_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/asuser"
)

const privateKey = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n"

// TestCredentialFiles lists what Derive would include: neither excluded files nor
// files that only resemble credentials.
func TestCredentialFiles(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		".env": "A=b\n", "app/.env.local": "A=b\n", "prod.env": "", ".npmrc": "", "deep/er/.git-credentials": "", ".netrc": "", "credentials.json": "{}",
		".aws/credentials": "", "credentials": "", "aws/credentials": "", ".pypirc": "", "state/terraform.tfstate": "{}", "store.p12": "",
		"id_ed25519": privateKey, "id_ed25519.pub": "ssh-ed25519 AAAA", "id_mapping.py": "x = 1\n",
		"server.pem": strings.Replace(privateKey, "OPENSSH ", "", 2), "ca.pem": "-----BEGIN CERTIFICATE-----\n", "slides.key": "PK\x03\x04",
		"tls/tls.key": strings.Replace(privateKey, "OPENSSH", "ENCRYPTED", 2), ".env.example": "A=\n", "main.go": privateKey,
		".git/config": "[remote \"origin\"]\n\turl = https://me:hunter2@git.test/x\n", "sub/.git/config": "[remote \"origin\"]\n\turl = https://git.test/x\n",
		".git/modules/lib/config": "[http]\n\textraheader = AUTHORIZATION: basic aHVudGVyMg==\n", "ssh/.git/config": "\turl = ssh://git@git.test:22/x\n",
		"tok/.git/config": "\turl = https://ghp_16C7e42F292c6912E7710c838347Ae178B4a@git.test/x\n", "user/.git/config": "\turl = https://me@git.test/x\n",
		"app/config":    "url = https://me:hunter2@git.test/x\n",
		"excluded/.env": "A=b\n", "also/.npmrc": "", ".dockerignore": "excluded\n", ".bottleignore": "also\n",
	} {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	must(t, os.Symlink("/etc/shadow", filepath.Join(dir, ".htpasswd")))
	must(t, os.Mkdir(filepath.Join(dir, "_netrc"), 0o755))
	got, err := images.CredentialFiles(context.Background(), dir, asuser.User{})
	want := []string{
		".aws/credentials", ".env", ".git/config", ".git/modules/lib/config", ".netrc", ".npmrc", ".pypirc", "app/.env.local", "credentials.json", "deep/er/.git-credentials",
		"id_ed25519", "prod.env", "server.pem", "state/terraform.tfstate", "store.p12", "tls/tls.key", "tok/.git/config",
	}
	if slices.Sort(got); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v\nwant %q", got, err, want)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if got, err := images.CredentialFiles(ctx, dir, asuser.User{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancellation: %q, %v", got, err)
	}
	must(t, os.Chmod(dir, 0o700))
	if got, err := images.CredentialFiles(context.Background(), dir, asuser.User{UID: 4242, GID: 4242}); !errors.Is(err, images.ErrUnreadable) {
		t.Errorf("as another user: %q, %v", got, err)
	}
}
