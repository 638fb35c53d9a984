package e2e

import "cmp"

// strict is a policy that forbids what lax allows.
const (
	strict = `version: 1
runtimes: [runsc]
proxies: {kinds: [builtin]}
images: [claude-bottle]
egress: {never: [never.test], at_most: ["allowed.test:443", "*.wild.test", never.test]}
limits: {memory: 1GiB, disk: 1GiB, cpus: 1, pids: 100, workspace: 1GiB}
builds: {allowed: false}
kept_work: false
learn: false
secrets: [prompt]
`
	lax = `version: 1
runtimes: [runc, runsc]
egress: {private: [10.0.0.0/8]}
builds: {host_network: true}
`
)

// optionAttempts use what the administrator's policy forbids, by flags and by manifests.
var optionAttempts = []attempt{
	{name: "runtime", script: `m; dry --runtime runc`, refused: "runtimes"},
	{name: "image", script: `m 'image: bottle-demo'; dry`, refused: "images"},
	{name: "image with a registry", script: `m 'image: docker.io/library/bottle-demo:latest'; dry`, refused: "images"},
	{name: "image of another name in a directory", script: `m 'image: claude-bottle/../bottle-demo'; dry || { m 'image: bottle-demo:latest'; dry; }`, refused: "images"},
	{name: "host", script: `m 'egress: {allow: [never.test]}'; dry`, refused: "egress.never"},
	{name: "host in capitals", script: `m 'egress: {allow: [NEVER.Test]}'; dry`, refused: "egress.never"},
	{name: "host with a port", script: `m 'egress: {allow: ["never.test:8443"]}'; dry`, refused: "egress.never"},
	{name: "host for ssh", script: `m 'egress: {allow: [never.test]}, ssh: []'; dry`, refused: "egress.never"},
	{name: "host that is not listed", script: `m 'egress: {allow: [other.test]}'; dry`, refused: "egress.at_most"},
	{name: "port that is not listed", script: `m 'egress: {allow: [allowed.test]}'; dry`, refused: "egress.at_most"},
	{name: "wildcard over listed hosts", script: `m 'egress: {allow: ["*.test"]}'; dry`, refused: "egress.at_most"},
	{name: "preset", script: `m 'egress: {allow: ["@debian"]}'; dry`, refused: "egress.at_most"},
	{name: "host for a running bottle", script: `$B allow mine never.test`, refused: "egress.never"},
	{name: "preset for a running bottle", script: `$B allow mine @debian`, refused: "egress.at_most"},
	{name: "private network", script: `m 'egress: {allow: [10.1.2.3], allow_private: [10.1.2.3]}'; dry`, refused: "egress"},
	{name: "learning", script: `m; script -qec "$B --manifest $PWD/m.yaml run a --proxy builtin --dry-run --learn" /dev/null`, refused: "is refused by learn"},
	{name: "memory", script: `m 'limits: {memory: 2GiB}'; dry`, refused: "limits.memory"},
	{name: "processors", script: `m 'limits: {cpus: 2}'; dry`, refused: "limits.cpus"},
	{name: "processes", script: `m 'limits: {pids: 5000}'; dry`, refused: "limits.pids"},
	{name: "disk", script: `m 'limits: {disk: 30GiB}'; dry`, refused: "limits.disk"},
	{name: "another bottle", policy: "version: 1\nbottles_per_user: 1\n", script: `m; real 'echo ran'`, refused: "bottles_per_user"},
	{name: "build", script: `printf 'FROM scratch\nLABEL a=b\n' >B; $B build -q -f B .`, refused: "builds.allowed"},
	{name: "build of a manifest", script: `printf 'FROM bottle-demo\n' >B; m 'image: claude-bottle:built, build: {context: ., dockerfile: B}'; dry`, refused: "builds.allowed"},
	{name: "kept work", script: `mkdir -p work; cd work; m; dry --cwd`, refused: "kept_work"},
	{name: "secret from the command line", script: `m; dry -e TOKEN=x`, refused: "secrets"},
	{name: "secret from a program", script: `m 'env: {X: {command: [echo, x]}}'; dry`, refused: "secrets"},
	{name: "secret in a file", script: `echo x >s; chmod 600 s; m "env: {X: {file: $PWD/s}}"; dry`, refused: "secrets"},
}

func init() {
	for i := range optionAttempts {
		a := &optionAttempts[i]
		a.policy, a.permitted, a.exit0 = cmp.Or(a.policy, strict), lax, true
	}
}

// ofBob are attempts on bob's bottle, whose control is root's, with the ID of his bottle.
func ofBob(name, script, control string) attempt {
	return attempt{name: name, script: script, refused: "no such bottle", exit0: true, control: control}
}

// asAda makes a control in a mount namespace of root's, in which a mount takes effect.
func asAda(prepare, mount, command string) string {
	return prepare + "; touch /etc/bottle/policy.yaml; unshare -m bash -c '" + mount +
		"; exec setpriv --reuid=41001 --regid=41001 --init-groups " + command + "'; code=$?; rm /etc/bottle/policy.yaml; exit $code"
}

const (
	credentialHelper = `printf '#!/bin/sh\nid -u >>/home/ada/uid\nexit 1\n' >docker-credential-evil; chmod +x docker-credential-evil
mkdir -p ~/.docker; echo '{"credsStore": "evil"}' >~/.docker/config.json; `
	hostileRepository = `rm -rf repo; git init -q repo; cd repo; m; printf '#!/bin/sh\nid -u >>/home/ada/uid\n' >evil; chmod +x evil; git config core.fsmonitor "$PWD/evil"; `
)

// hostAttempts run something as root, choose what amounts to root, reach the host's
// loopback interface from a build, and enter or end another user's bottle.
var hostAttempts = []attempt{
	// sudo itself.
	{name: "another program", script: `sudo -n /bin/cat /root/victim/secret`, refused: "a password is required", control: `cat /root/victim/secret`},
	{name: "a shell", script: `sudo -n -s cat /root/victim/secret; sudo -n -i cat /root/victim/secret`, refused: "a password is required", control: `bash -c 'cat /root/victim/secret'`},
	{name: "sudoedit", script: `sudo -n -e /root/victim/secret`, refused: "a password is required", control: `cat /root/victim/secret`},
	{name: "own program of that name", script: `printf '#!/bin/sh\nid -u >>/home/ada/uid\n' >bottle; chmod +x bottle; PATH=$PWD:$PATH sudo -n ./bottle; sudo -n "$PWD/bottle"`, refused: "a password is required",
		control: `printf '#!/bin/sh\nid -u >>/home/ada/uid\n' >bottle; chmod +x bottle; ./bottle`},
	{name: "preserved environment", script: `CONTAINERD_ADDRESS=/home/ada/fake.sock sudo -n -E /usr/bin/bottle list`, refused: "not allowed to preserve the environment",
		control: `CONTAINERD_ADDRESS=/home/ada/fake.sock $B list`},
	{name: "another user's ID", script: `sudo -n SUDO_UID=0 /usr/bin/bottle policy check /root/victim/bad.yaml`, refused: "not allowed to set",
		control: `SUDO_UID=0 $B policy check /root/victim/bad.yaml`},
	{name: "another user's ID in the environment", script: `SUDO_UID=0 SUDO_USER=root $B policy check /root/victim/bad.yaml`, refused: "permission denied"},
	{name: "root's home", script: `HOME=/root $B --manifest '~/victim/bad.yaml' config check; HOME=/root $B policy check /root/victim/bad.yaml`, refused: "permission denied",
		control: `$B --manifest /root/victim/bad.yaml config check`},
	{name: "programs in PATH", script: `mkdir -p ~/bin; for p in runsc runc git mkfs.ext4 nsenter containerd-shim-runsc-v1; do printf '#!/bin/sh\nid -u >>/home/ada/uid\nexit 1\n' >~/bin/$p; chmod +x ~/bin/$p; done
PATH=~/bin:$PATH $B doctor >/dev/null; PATH=~/bin:$PATH $B list; rm -r ~/bin; $B --address /nowhere list`, refused: "is refused",
		control: `mkdir -p /home/ada/bin; printf '#!/bin/sh\nid -u >>/home/ada/uid\nexit 1\n' >/home/ada/bin/runsc; chmod +x /home/ada/bin/runsc; $B doctor >/dev/null; rm -r /home/ada/bin`},

	// What amounts to root.
	{name: "containerd's socket", script: `$B --address /home/ada/fake.sock list`, refused: "is refused"},
	{name: "containerd's socket as a URL", script: `$B --address unix:///home/ada/fake.sock list`, refused: "is refused"},
	{name: "containerd's socket by a relative path", script: `$B --address ../fake.sock list`, refused: "is refused", control: `$B --address /home/ada/fake.sock list`},
	{name: "containerd's socket in a variable", script: `sudo -n CONTAINERD_ADDRESS=/home/ada/fake.sock /usr/bin/bottle list; $B --address /home/ada/fake.sock ps`, refused: "not allowed to set",
		control: `CONTAINERD_ADDRESS=/home/ada/fake.sock $B list`},
	{name: "buildkitd", script: `sudo -n BUILDKIT_HOST=unix:///home/ada/fake.sock /usr/bin/bottle build -q .`, refused: "not allowed to set",
		control: `printf 'FROM scratch\n' >Dockerfile; BUILDKIT_HOST=unix:///home/ada/fake.sock timeout 2 $B build -q .`},
	{name: "CNI plugins", script: `sudo -n CNI_PATH=/home/ada/cni /usr/bin/bottle list`, refused: "not allowed to set",
		control: `mkdir -p cni; for p in bridge loopback host-local static; do printf '#!/bin/sh\nid -u >>/home/ada/uid\nexit 1\n' >cni/$p; chmod +x cni/$p; done; m; CNI_PATH=$PWD/cni real true`},
	{name: "containerd's namespace", script: `$B --namespace other list`, refused: "is refused", exit0: true},
	// containerd reads the directory, and shares /tmp with this host.
	{name: "registries' settings", refused: "is refused",
		script: `hosts=$(mktemp -d); mkdir $hosts/x.test; printf '[host."http://127.0.0.1:%s"]\n' $PORT >$hosts/x.test/hosts.toml; $B pull -q --hosts-dir $hosts x.test/y; rm -r $hosts`},
	{name: "layer of a registry", script: `$B pull -q $EVIL`, refused: "escapes the image's root",
		control: `mkdir -p x; cd x; echo x >f; tar -cPf ../e.tar --transform 's,f,../../../../root/victim/out,' f; tar -xPf ../e.tar`},
	{name: "image of the proxy", script: `m 'proxy: {kind: pipelock, image: "bottle-demo:latest", version: 2.3.0}'; $B --manifest "$PWD/m.yaml" run a --dry-run`, refused: "proxies.images", exit0: true},
	{name: "runtime without a policy", script: `m; dry --runtime runc`, refused: "no policy allows it", exit0: true},
	{name: "private network without a policy", script: `m 'egress: {allow: [10.1.2.3], allow_private: [10.1.2.3]}'; dry`, refused: "no policy allows it", exit0: true},
	{name: "writing logs", script: `$B proxy-log /root/victim/log </dev/null`, refused: "only for containerd's shims",
		control: `$B proxy-log /root/victim/log 3</dev/null 4</dev/null 5>/dev/null`},
	{name: "serving a proxy", script: `echo '{"listen": "127.0.0.1:'$PORT'"}' >proxy.json; $B proxy --config proxy.json`, refused: "only for containerd's shims", exit0: true,
		control: `echo '{"listen": "127.0.0.1:0"}' >proxy.json; timeout --preserve-status -s INT 1 $B proxy --config proxy.json`},
	{name: "shim", script: `$B -info`, refused: "only for containerd", exit0: true, control: `$B -info </dev/null`},
	{name: "containerd itself", script: `: </run/lab/containerd.sock; cat /run/bottle/* /var/lib/bottle/*/*`, refused: "ermission denied", control: `cat /root/victim/secret; ls /run/bottle`},
	{name: "policy in a user namespace", policy: strict, exit0: true, refused: "sudo: no valid sudoers sources found",
		script:  `m; echo 'version: 1' >p; unshare -Urm bash -c 'mount --bind p /etc/bottle/policy.yaml; sudo -n /usr/bin/bottle --manifest $PWD/m.yaml run a --proxy builtin --dry-run --runtime runc'`,
		control: asAda(`m; printf 'version: 1\nruntimes: [runc]\n' >p`, `mount --bind p /etc/bottle/policy.yaml`, `sudo -n /usr/bin/bottle --manifest $PWD/m.yaml run a --proxy builtin --dry-run --runtime runc`)},
	{name: "sudoers in a user namespace", refused: "sudo: no valid sudoers sources found",
		script:  `echo 'ALL ALL=(ALL) NOPASSWD: ALL' >s; unshare -Urm bash -c 'mount --bind s /etc/sudoers.d/bottle; sudo -n cat /root/victim/secret'`,
		control: asAda(`echo 'ALL ALL=(ALL) NOPASSWD: ALL' >s; chmod 440 s`, `mount --bind s /etc/sudoers.d/bottle`, `sudo -n cat /root/victim/secret`)},
	{name: "programs in a user namespace", refused: "sudo: no valid sudoers sources found",
		script:  `printf '#!/bin/sh\nid -u >>/home/ada/uid\n' >b; chmod +x b; unshare -Urm bash -c 'mount --bind b /usr/bin/bottle; sudo -n /usr/bin/bottle'`,
		control: asAda(`printf '#!/bin/sh\nid -u >>/home/ada/uid\n' >b; chmod 755 b`, `mount --bind b /usr/bin/bottle`, `sudo -n /usr/bin/bottle`)},

	// Credentials of root, and programs that a repository or a configuration names.
	{name: "root's login for a registry", script: `ln -sfn /root/.docker ~/.docker; $B pull -q 127.0.0.1:$REGISTRY/x/y:1; rm ~/.docker`, refused: "ermission denied",
		control: `$B pull -q 127.0.0.1:$REGISTRY/x/y:1`},
	{name: "root's login by a variable", script: `sudo -n DOCKER_CONFIG=/root/.docker /usr/bin/bottle pull -q 127.0.0.1:$REGISTRY/x/y:1`, refused: "not allowed to set",
		control: `DOCKER_CONFIG=/root/.docker $B pull -q 127.0.0.1:$REGISTRY/x/y:1`},
	{name: "credential helper", script: credentialHelper + `PATH=$PWD:$PATH $B pull -q 127.0.0.1:$REGISTRY/x/y:1; rm -r ~/.docker`, refused: "access denied",
		control: `export HOME=$PWD/home; mkdir -p $HOME; ` + credentialHelper + `PATH=$PWD:$PATH DOCKER_CONFIG=$HOME/.docker $B pull -q 127.0.0.1:$REGISTRY/x/y:1`},
	{name: "credential helper by its path", script: credentialHelper + `echo "{\"credsStore\": \"x/../../../../..$PWD/docker-credential-evil\"}" >~/.docker/config.json; $B pull -q 127.0.0.1:$REGISTRY/x/y:1; rm -r ~/.docker`, refused: "access denied",
		control: `printf '#!/bin/sh\nid -u >>/home/ada/uid\n' >evil; chmod +x evil; ./evil`},
	{name: "root's key for git", policy: lax, script: `[ -z "${SSH_AGENT_PID-}" ]; eval "$(ssh-agent)" >/dev/null; $B build -q --network host --ssh default=$SSH_AUTH_SOCK ssh://labgit@ssh.allowed.test/~/demo.git; kill $SSH_AGENT_PID`,
		refused: "Permission denied (publickey", seen: "open Dockerfile: no such file"},
	{name: "program of a git repository", script: hostileRepository + `$B --manifest "$PWD/m.yaml" run a --proxy builtin --dry-run --cwd`, refused: "copy of",
		control: hostileRepository + `git -c safe.directory='*' status`},

	// The host's loopback interface, from a build.
	{name: "loopback from a step", script: `printf 'FROM claude-bottle\nRUN exec 3<>/dev/tcp/127.0.0.1/%s\n' $PORT >L; sed -i 's/RUN /SHELL ["bash", "-c"]\nRUN /' L; $B build -q --no-cache -f L .`, refused: "did not complete successfully",
		control: `printf 'FROM claude-bottle\nSHELL ["bash", "-c"]\nRUN exec 3<>/dev/tcp/127.0.0.1/%s\n' $PORT >L; $B build -q --no-cache --network host -f L .`},
	{name: "loopback through the build's proxy", script: `printf 'FROM claude-bottle\nRUN curl -sS http://localhost.localdomain:%s/ || curl -sS --noproxy "" -x $HTTP_PROXY http://127.0.0.1:%s/\n' $PORT $PORT >L; $B build -q --no-cache -f L .`, refused: "refused",
		control: `printf 'FROM claude-bottle\nRUN curl -sS http://127.0.0.1:%s/\n' $PORT >L; $B build -q --no-cache --network host -f L .`},
	{name: "loopback by ADD", script: `printf 'FROM scratch\nADD http://127.0.0.1:%s/x /\n' $PORT >L; $B build -q --no-cache -f L .`, refused: "refused",
		control: `printf 'FROM scratch\nADD http://127.0.0.1:%s/x /\n' $PORT >L; $B build -q --no-cache --network host -f L .`},
	{name: "loopback by a git repository", script: `$B build -q http://127.0.0.1:$PORT/x.git`, refused: "403", control: `$B build -q --network host http://127.0.0.1:$PORT/x.git`},
	{name: "the host's network", script: `printf 'FROM scratch\n' >L; $B build -q --network host -f L .`, refused: "no policy allows it", exit0: true,
		control: `printf 'FROM scratch\nLABEL a=b\n' >L; $B build -q --network host -f L .`},
	{name: "a step with the host's network", script: `printf 'FROM claude-bottle\nSHELL ["bash", "-c"]\nRUN --network=host exec 3<>/dev/tcp/127.0.0.1/%s\n' $PORT >L; $B build -q --no-cache -f L .`, refused: "network.host",
		control: `printf 'FROM claude-bottle\nSHELL ["bash", "-c"]\nRUN --network=host exec 3<>/dev/tcp/127.0.0.1/%s\n' $PORT >L; $B build -q --no-cache --network host -f L .`},

	// Bob's bottle.
	ofBob("exec in another user's bottle", `$B exec theirs cat /tmp/mark`, `$B exec theirs.u41002 cat /tmp/mark`),
	ofBob("exec in another user's bottle by its ID", `$B exec theirs.u41002 cat /tmp/mark`, `$B exec theirs.u41002 cat /tmp/mark`),
	ofBob("shell in another user's bottle", `echo cat /tmp/mark | $B shell theirs.u41002`, `echo cat /tmp/mark | $B shell theirs.u41002`),
	ofBob("copy from another user's bottle", `$B cp theirs.u41002:/tmp/mark . && cat mark`, `$B cp theirs.u41002:/tmp/mark . && cat mark`),
	ofBob("copy into another user's bottle", `echo x >x; $B cp x theirs.u41002:/tmp/x`, `echo x >x; $B cp x theirs.u41002:/tmp/x`),
	ofBob("egress log of another user's bottle", `$B egress theirs.u41002`, `$B egress theirs.u41002`),
	ofBob("hosts of another user's bottle", `$B allow theirs.u41002 evil.test`, `$B allow theirs.u41002 evil.test`),
	ofBob("denied hosts of another user's bottle", `$B deny theirs.u41002 evil.test`, `$B deny theirs.u41002 evil.test`),
	ofBob("details of another user's bottle", `$B inspect theirs.u41002`, `$B inspect theirs.u41002`),
	ofBob("end of another user's bottle", `$B rm -f second.u41002`, `$B rm -f second.u41002`),
	ofBob("stop of another user's bottle", `$B stop third.u41002`, `$B stop third.u41002`),
	{name: "cleanup", script: `$B cleanup --yes; $B list -a`, refused: "No bottles", ends: true},
}
