package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/labtest"
)

// Users of sudo on a sudoHost.
const (
	ada = 41001
	bob = 41002
	eve = 41003 // who may also run everything else
)

// sudoHost is a host of several users who may run only bottle with sudo: a mount namespace
// of the test host in which /usr, /etc, /home and /root are those of a Debian root file
// system with real sudo. Its bottles run in the test host's containerd.
type sudoHost struct {
	t      *testing.T
	root   string // of the host, for the test
	mounts string // file of the mount namespace
	path   string // sudo's secure_path
	// secret is in files of root and of bob, and in bob's bottle. It is a valid variable name.
	secret string
	hits   atomic.Int32 // connections to victims on the host's loopback interface
	port   int          // of one of them
	// registry is the port of a registry on loopback that counts logins with the secret.
	registry string
	evil     string // image with a layer that leads out of the image
}

// sudoHostSetup makes the current mount namespace that of a sudoHost and waits for the end
// of standard input. /run and /var/lib/bottle stay those of the test host: containerd must
// see what bottle mounts there.
const sudoHostSetup = `set -euo pipefail
umask 022
own=$1 program=$2 path=$3 cache=$(dirname "$LAB_SUDO_ROOT")
mkdir "$own/upper" "$own/work" "$own/root"
mount -t overlay -o "lowerdir=$LAB_SUDO_ROOT,upperdir=$own/upper,workdir=$own/work" sudo-host "$own/root"
cd "$own/root"
cat /etc/resolv.conf >etc/resolv.conf
cat /etc/hosts >etc/hosts
echo labhost >etc/hostname
mkdir -p etc/bottle
install -d -m 1777 home/shared
mount --bind /etc/bottle etc/bottle
for user in ada:41001 bob:41002 eve:41003; do
  name=${user%:*} id=${user#*:}
  echo "$name:x:$id:$id::/home/$name:/bin/bash" >>etc/passwd
  echo "$name:x:$id:" >>etc/group
  echo "$name:*:20000:0:99999:7:::" >>etc/shadow
  mkdir -m 0700 "home/$name"
  chown "$id:$id" "home/$name"
done
chmod 0755 home/ada
ln -s "$program" usr/bin/bottle
install -m 0755 "$(command -v runc)" usr/sbin/runc
cat >etc/sudoers.d/bottle <<END
Defaults secure_path="$path"
ada, bob ALL=(root) NOPASSWD: /usr/bin/bottle
eve ALL=(ALL:ALL) NOPASSWD: ALL
END
chmod 0440 etc/sudoers.d/bottle
case $cache in /root/* | /home/*)
  mkdir -p ".$cache"
  mount --bind "$cache" ".$cache" ;;
esac
for dir in root home etc usr; do mount --rbind "$dir" "/$dir"; done
cd /
echo ready
read -r _ || true
`

func newSudoHost(t *testing.T) *sudoHost {
	t.Helper()
	h := &sudoHost{t: t, path: os.Getenv("PATH"), secret: "VICTIM_" + rand.Text()}
	for _, dir := range []string{"/run", "/var/lib/bottle"} {
		if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { must(t, unix.Mount("", dir, "", unix.MS_PRIVATE, "")) })
	}
	cmd := exec.Command("unshare", "--mount", "--propagation", "unchanged", "--", "bash", "-c", sudoHostSetup, "-",
		t.TempDir(), labtest.Program(t), h.path)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); must(t, cmd.Wait()) })
	line := make([]byte, 6)
	if _, err := out.Read(line); string(line) != "ready\n" {
		t.Fatalf("set up a host with sudo: %q, %v\n%s", line, err, errs.String())
	}
	h.root = fmt.Sprintf("/proc/%d/root", cmd.Process.Pid)
	h.mounts = fmt.Sprintf("/proc/%d/ns/mnt", cmd.Process.Pid)
	t.Cleanup(func() {
		h.t = t
		for _, uid := range []int{ada, bob, eve, 0} {
			h.good(uid, "$B cleanup --yes && $B build --prune")
		}
		must(t, os.RemoveAll("/run/sudo"))
	})
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// prelude defines what scripts use: m writes a manifest with one bottle, dry shows the plan
// of its agent, and real runs a script in it.
const prelude = `
m() { printf 'version: 1\nbottles:\n  b: {%s}\nagents:\n  a: {bottle: b, command: [sh]%s}\n' "$1" "${2-}" >m.yaml; }
dry() { $B --manifest "$PWD/m.yaml" run a --proxy builtin --dry-run "$@"; }
real() { $B --manifest "$PWD/m.yaml" run a --proxy builtin --yes -q --trust -- -c "$@"; }
`

// sh returns a shell of a user that runs a script in a directory of work. $B is bottle:
// through sudo for a user, and by itself for root, whose PATH begins with a directory of
// ada's.
func (h *sudoHost) sh(uid int, script string) *exec.Cmd {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(h.t.Context()), longest)
	h.t.Cleanup(cancel)
	env := []string{"TERM=dumb", "PATH=/usr/local/bin:/usr/bin:/bin", "B=sudo -n /usr/bin/bottle"}
	dir := "/home/ada/root"
	switch uid {
	case 0:
		env = []string{"TERM=dumb", "PATH=/home/ada/bin:" + h.path, "B=/usr/bin/bottle", "HOME=/root", "USER=root"}
	default:
		name := map[int]string{ada: "ada", bob: "bob", eve: "eve"}[uid]
		env, dir = append(env, "HOME=/home/"+name, "USER="+name), "/home/"+name+"/work"
	}
	args := []string{"--mount=" + h.mounts, "--", "setpriv", fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--init-groups", "--",
		"env", "-i"}
	args = append(args, env...)
	args = append(args, fmt.Sprintf("PORT=%d", h.port), "REGISTRY="+h.registry, "EVIL="+h.evil, "bash", "-c", "mkdir -p "+dir+" && cd "+dir+" || exit\n"+prelude+script)
	cmd := exec.CommandContext(ctx, "nsenter", args...)
	cmd.Dir = "/"
	return cmd
}

func (h *sudoHost) run(uid int, script string) result {
	h.t.Helper()
	return finish(h.t, h.sh(uid, script))
}

// good runs a script that must succeed.
func (h *sudoHost) good(uid int, script string) result {
	h.t.Helper()
	r := h.run(uid, script)
	if r.code != 0 {
		h.t.Fatalf("%s: exit %d\n%s%s", script, r.code, r.stdout, r.stderr)
	}
	return r
}

// listen counts connections to a victim on the host's loopback interface, and to one at a
// socket of ada's.
func (h *sudoHost) listen() {
	h.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		h.t.Fatal(err)
	}
	h.port = l.Addr().(*net.TCPAddr).Port
	h.count(l)
	if l, err = net.Listen("unix", h.root+"/home/ada/fake.sock"); err != nil {
		h.t.Fatal(err)
	}
	h.count(l)
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password == h.secret {
			h.hits.Add(1)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	h.t.Cleanup(registry.Close)
	_, h.registry, _ = net.SplitHostPort(registry.Listener.Addr().String())
}

// publish stores an image with a hostile layer in a registry.
func (h *sudoHost) publish() {
	h.t.Helper()
	h.evil = labtest.PlainRegistry(h.t).Host + "/evil:1"
	h.t.Run("publish", func(t *testing.T) { // its end removes the image
		labtest.PutEntries(t, h.evil, ocispec.ImageConfig{}, []labtest.Entry{
			{Header: tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/root/victim"}},
			{Header: tar.Header{Name: "link/out", Mode: 0o644, Typeflag: tar.TypeReg}, Data: []byte("x")},
			{Header: tar.Header{Name: "../../../../../../../../root/victim/out", Mode: 0o644, Typeflag: tar.TypeReg}, Data: []byte("x")},
		})
		newUser(t).bottle("push", "-q", h.evil).want(t, 0, "")
	})
}

// count counts connections to a listener until the test ends.
func (h *sudoHost) count(l net.Listener) {
	h.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.hits.Add(1)
			_ = c.Close()
		}
	}()
}
