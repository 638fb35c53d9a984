package e2e

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fixtures creates the victims, again where an attempt's control has changed them. VICTIM
// is the secret.
func (h *sudoHost) fixtures() {
	h.t.Helper()
	for _, f := range []struct {
		uid        int
		name, text string
		mode       os.FileMode
	}{
		{0, "/root/victim/env", "VICTIM=1\n", 0o600},
		{0, "/root/victim/secret", "VICTIM\n", 0o600},
		{0, "/root/victim/own.yaml", "version: 1\nbottles: {b: {env: {VICTIM: x}}}\nagents: {a: {bottle: b, command: [sh]}}\n", 0o600},
		{0, "/root/victim/bad.yaml", "VICTIM: 1\n", 0o600},
		{0, "/root/victim/context/Dockerfile", "FROM bottle-demo\nRUN --network=none echo VICTIM\n", 0o600},
		{0, "/root/victim/skill/SKILL.md", "---\nname: VICTIM\n---\nVICTIM\n", 0o600},
		{0, "/root/.docker/config.json", fmt.Sprintf(`{"auths": {"127.0.0.1:%s": {"auth": %q}}}`, h.registry, base64.StdEncoding.EncodeToString([]byte("root:"+h.secret))), 0o600},
		{0, "/root/.ssh/known_hosts", "", 0o600},
		{bob, "/home/bob/env", "VICTIM=1\n", 0o600},
		{bob, "/home/bob/bad.yaml", "VICTIM: 1\n", 0o600},
		{0, "/home/shared/env", "VICTIM=1\n", 0o600},
	} {
		path := h.root + f.name
		must(h.t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(h.t, os.WriteFile(path, []byte(strings.ReplaceAll(f.text, "VICTIM", h.secret)), f.mode))
		must(h.t, os.Lchown(path, f.uid, f.uid))
	}
	if _, err := os.Stat(h.root + "/root/.ssh/id_ed25519"); err != nil {
		h.good(0, "ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
		authorize(h.t, h.root+"/root/.ssh/id_ed25519.pub")
	}
	for _, name := range []string{"new.yaml", "out", "log", "bottle"} {
		must(h.t, os.RemoveAll(h.root+"/root/victim/"+name))
	}
}

// fileAttempts read and write files of root and bob through what a user names.
var fileAttempts = []attempt{
	{name: "variables in a file of root's", script: `m; dry --env-file /root/victim/env`, refused: "permission denied"},
	{name: "variables in a file of another user", script: `m; dry --env-file /home/bob/env`, refused: "permission denied"},
	{name: "variables behind a symbolic link", script: `m; ln -sf /root/victim/env link; dry --env-file link`, refused: "permission denied"},
	{name: "variables behind a hard link", script: `m; ln -f /home/shared/env hard 2>/dev/null || ln -sf /home/shared/env hard; dry --env-file hard`, refused: "permission denied"},
	{name: "variables through /proc", script: `m; dry --env-file /proc/self/root/root/victim/env`, refused: "permission denied"},
	{name: "variables through a directory's descriptor", script: `m; ln -sfn /root/victim dir; exec 3<.; dry --env-file /proc/self/cwd/dir/env`, refused: "permission denied"},
	{name: "variables in a pipe of another user", script: `m; $B --manifest "$PWD/m.yaml" run a --proxy builtin --yes -q --trust --env-file /home/shared/pipe -- -c env`,
		refused: "permission denied"},
	{name: "manifest of root's", script: `$B --manifest /root/victim/own.yaml config show`, refused: "permission denied"},
	{name: "manifest of another user", script: `$B --manifest /home/bob/bad.yaml config check`, refused: "permission denied"},
	{name: "manifest behind a symbolic link", script: `ln -sf /root/victim/bad.yaml bottle.yaml; $B config check; rm bottle.yaml`, refused: "no manifest found",
		control: `$B --manifest /root/victim/bad.yaml config check`},
	{name: "manifest found above", script: `mkdir -p sub; ln -sf /root/victim/bad.yaml bottle.yaml; cd sub; $B config check; rm ../bottle.yaml`, refused: "no manifest found",
		control: `cd /root/victim; ln -s bad.yaml bottle.yaml; $B config check; rm bottle.yaml`},
	{name: "manifest that a race replaces", script: `m; cp m.yaml mine.yaml
(while [ ! -e stopped ]; do ln -sfn mine.yaml race.yaml; ln -sfn /root/victim/bad.yaml race.yaml; done) &
for i in $(seq 10); do $B --manifest "$PWD/race.yaml" config check; done; touch stopped; wait; $B --manifest /root/victim/bad.yaml config check`, refused: "permission denied"},
	{name: "policy as a file to check", script: `$B policy check /root/victim/bad.yaml`, refused: "permission denied"},
	{name: "secret in a file of root's", script: `m 'env: {X: {file: /root/victim/secret}}'; dry`, refused: "permission denied", exit0: true},
	{name: "secret in a file of another user", script: `m 'env: {X: {file: /home/bob/env}}'; dry`, refused: "permission denied", exit0: true},
	{name: "secret from root's program", script: `m 'env: {X: {command: [sh, -c, "id -u >>/home/ada/uid; cat /root/victim/secret"]}}'; real 'echo $X'`,
		refused: "denied"},
	{name: "build context of root's", script: `$B build --progress plain --no-cache /root/victim/context`, refused: "no permission to read"},
	{name: "build context behind a symbolic link", script: `ln -sfn /root/victim/context ctx; $B build --progress plain --no-cache ctx`, refused: "no permission to read"},
	{name: "Dockerfile of root's", script: `$B build --progress plain --no-cache -f /root/victim/context/Dockerfile .`, refused: "ermission"},
	{name: "Dockerfile behind a symbolic link", script: `ln -sf /root/victim/context/Dockerfile D; $B build --progress plain --no-cache -f D .`, refused: "ermission",
		control: `$B build --progress plain --no-cache -f /root/victim/context/Dockerfile .`},
	{name: "named build context", script: `printf 'FROM bottle-demo\nUSER 0\nCOPY --from=x Dockerfile /\nRUN --network=none cat /Dockerfile\n' >N
$B build --progress plain --no-cache -f N --build-context x=/root/victim/context .`, refused: "ermission"},
	{name: "secret of a build", script: `printf 'FROM bottle-demo\nUSER 0\nRUN --network=none --mount=type=secret,id=s cat /run/secrets/s\n' >S
$B build --progress plain --no-cache -f S --secret id=s,src=/root/victim/secret .`, refused: "ermission"},
	{name: "file in a build context", script: `mkdir -p hc; printf 'FROM bottle-demo\nCOPY . /c\nRUN --network=none cat /c/env\n' >hc/Dockerfile
ln /home/shared/env hc/env || { mkdir hc/env; chmod 0 hc/env; }
$B build --progress plain --no-cache hc`, refused: "no permission to read",
		control: `mkdir -p hc; printf 'FROM bottle-demo\nUSER 0\nCOPY . /c\nRUN --network=none cat /c/env\n' >hc/Dockerfile; cp /home/shared/env hc; $B build --progress plain --no-cache hc`},
	{name: "context that a race replaces", script: `mkdir -p r1; printf 'FROM bottle-demo\nRUN --network=none true\n' >r1/Dockerfile
(while [ ! -e stop ]; do ln -sfn r1 race; ln -sfn /root/victim/context race; done) &
$B build --progress plain --no-cache race; $B build --progress plain --no-cache race; touch stop; wait; $B build /root/victim/context`,
		refused: "no permission to read", control: `$B build --progress plain --no-cache /root/victim/context`},
	{name: "skill of root's", script: `mkdir -p ~/.claude/skills; ln -sfn /root/victim/skill ~/.claude/skills/x; m '' ', kind: claude, skills: [x]'; dry`,
		refused: "not readable by you", exit0: true},
	{name: "key of root's for ssh", script: `m 'ssh: [{Host: box, HostName: ssh.allowed.test, IdentityFile: /root/.ssh/id_ed25519, HostKey: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMXzLOKiMaFavzePnIti3zo3Ccxii84yQm7sMFRspFsd}]'; dry`,
		refused: "ermission", exit0: true},
	{name: "copy into a bottle", script: `$B cp /root/victim/secret mine:/tmp/x && $B exec mine cat /tmp/x`, refused: "ermission",
		control: `$B cp /root/victim/secret mine.u41001:/tmp/x && $B exec mine.u41001 cat /tmp/x`},
	{name: "copy out of a bottle", script: `$B cp mine:/etc/passwd /root/victim/out`, refused: "ermission", control: `$B cp mine.u41001:/etc/passwd /root/victim/out`},
	{name: "copy through a symbolic link", script: `ln -sfn /root/victim dir; $B cp mine:/etc/passwd dir/out`, refused: "ermission",
		control: `ln -sfn /root/victim dir; $B cp mine.u41001:/etc/passwd dir/out`},
	{name: "copy over a symbolic link", script: `ln -sfn /root/victim/out file; $B cp mine:/etc/passwd file`, refused: "permission denied",
		control: `$B cp mine.u41001:/etc/passwd /root/victim/out`},
	{name: "new manifest", script: `$B --manifest /root/victim/new.yaml init`, refused: "ermission"},
	{name: "new manifest behind a symbolic link", script: `ln -sfn /root/victim dir; $B --manifest dir/new.yaml init`, refused: "ermission"},
	{name: "saved manifest", script: `$B --manifest /root/victim/own.yaml allow a new.test --save`, refused: "ermission"},
	{name: "saved manifest behind a symbolic link", script: `ln -sf /root/victim/own.yaml own.yaml; $B --manifest own.yaml allow a new.test --save`, refused: "ermission",
		control: `$B --manifest /root/victim/own.yaml allow a new.test --save`},
	{name: "approvals behind a symbolic link", script: `m; rm -rf ~/.local; mkdir -p ~/.local/state; ln -s /root/victim ~/.local/state/bottle; $B trust "$PWD/m.yaml" --yes; rm -rf ~/.local`,
		refused: "ermission", control: `m; XDG_STATE_HOME=/root/victim $B --manifest "$PWD/m.yaml" trust --yes`},
}

// authorize lets a key log in to the outside world's ssh server until the test ends.
func authorize(t *testing.T, file string) {
	t.Helper()
	list := filepath.Join(sshWorld(), "authorized_keys")
	before, err := os.ReadFile(list)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	key, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.WriteFile(list, slices.Concat(before, key), 0o644))
	t.Cleanup(func() { must(t, os.WriteFile(list, before, 0o644)) })
}

// pipe creates a pipe of bob's from which the first reader gets the secret.
func (h *sudoHost) pipe() {
	h.t.Helper()
	path := h.root + "/home/shared/pipe"
	must(h.t, unix.Mkfifo(path, 0o600))
	must(h.t, os.Lchown(path, bob, bob))
	written := make(chan struct{})
	go func() {
		defer close(written)
		_ = os.WriteFile(path, []byte(h.secret+"=1\n"), 0o600) // without a reader it is an error
	}()
	h.t.Cleanup(func() {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // lets a writer go on
		must(h.t, err)
		<-written
		must(h.t, f.Close())
	})
}
