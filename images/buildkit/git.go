package buildkit

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
)

// BuildKit fetches git repositories by running git found in PATH, as this process's user
// and in its network. The content of a repository is not trusted: a submodule names any
// URL, and ssh uses the keys in root's home, whatever HOME is. So for the time of a
// build, PATH begins with a directory that contains another program "git".

// gitProxied is that program for proxied builds: it runs git in a namespace with the
// steps' proxy. The proxy passes TLS and plain HTTP, and git speaks no other protocol
// (git-config(1), protocol.allow; BuildKit sets protocol.file.allow for its own copies).
const gitProxied = `#!/bin/sh
unset HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY all_proxy no_proxy
export http_proxy=http://%[1]s https_proxy=http://%[1]s GIT_CONFIG_COUNT=3 \
  GIT_CONFIG_KEY_0=protocol.allow GIT_CONFIG_VALUE_0=never \
  GIT_CONFIG_KEY_1=protocol.http.allow GIT_CONFIG_VALUE_1=always \
  GIT_CONFIG_KEY_2=protocol.https.allow GIT_CONFIG_VALUE_2=always
exec %[2]s --net=%[3]s -- %[4]s "$@"
`

// gitOfCaller is that program for builds with the host's network that are not root's: ssh
// gets no keys and known hosts but those of the build (ssh_config(5)).
const gitOfCaller = `#!/bin/sh
case $GIT_SSH_COMMAND in *UserKnownHostsFile=*) ;; *) GIT_SSH_COMMAND="$GIT_SSH_COMMAND -o UserKnownHostsFile=/dev/null" ;; esac
export GIT_SSH_COMMAND="$GIT_SSH_COMMAND -o IdentityFile=/dev/null -o BatchMode=yes"
exec %[1]s "$@"
`

// confineGit puts the program into PATH until the session is closed. Without git on the
// host there is nothing to do: BuildKit then refuses git repositories.
func (s *session) confineGit(n *stepNamespace, uid int) error {
	if n == nil && uid == 0 {
		return nil
	}
	git, _ := exec.LookPath("git")
	if git == "" {
		return nil
	}
	text := fmt.Sprintf(gitOfCaller, quote(git))
	if n != nil {
		nsenter, err := exec.LookPath("nsenter")
		if err != nil {
			return &hint.Error{Err: fmt.Errorf("confine git: %w", err), Hint: "install the package util-linux on the host"}
		}
		text = fmt.Sprintf(gitProxied, stepProxy, quote(nsenter), n.path(), quote(git))
	}
	dir := filepath.Join(s.state.tmp(), "git")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("confine git: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "git"), []byte(text), 0o700); err != nil {
		return fmt.Errorf("confine git: %w", err)
	}
	return s.state.setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// quote quotes a word for sh.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
