package e2e

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// sshOwner has a private key that both of the world's ssh hosts let in, and a
// manifest that lists it for one of them.
type sshOwner struct {
	user
	key     string // the private key's file
	private ed25519.PrivateKey
	secret  string // what is searched for: a line of its text
}

func newSSHOwner(t *testing.T, passphrase string) sshOwner {
	t.Helper()
	o := sshOwner{user: newUser(t), key: filepath.Join(t.TempDir(), "id_test")}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(block)
	o.private, o.secret = private, strings.Split(string(text), "\n")[3]
	if err := os.WriteFile(o.key, text, 0o600); err != nil {
		t.Fatal(err)
	}
	authorized, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	dir := sshWorld()
	line := ssh.MarshalAuthorizedKey(authorized)
	if err := os.WriteFile(o.key+".pub", line, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "authorized_keys"), line, 0o644); err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	// Hashed, as Debian's ssh writes it.
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	known := "ssh.allowed.test " + hostKey(t, "ssh.allowed.test")
	if err := os.WriteFile(filepath.Join(home, ".ssh/known_hosts"), []byte(known+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ssh-keygen", "-H", "-f", filepath.Join(home, ".ssh/known_hosts")).CombinedOutput(); err != nil {
		t.Fatalf("hash known_hosts: %v %s", err, out)
	}
	o.user = o.with("HOME=" + home)
	o.manifest("")
	return o
}

func sshWorld() string { return filepath.Join(os.Getenv("LAB_STATE"), "world/ssh") }

func hostKey(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(sshWorld(), name+".pub"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

// manifest lists the key for the host "work"; "other" is allowed too, without it.
func (o sshOwner) manifest(mode string) {
	o.t.Helper()
	o.write("bottle.yaml", fmt.Sprintf(`
version: 1
bottles:
  dev:
    ssh:
      - {Host: work, HostName: ssh.allowed.test, User: labgit, IdentityFile: %q%s}
      - {Host: other, HostName: ssh.other.test, User: labgit, HostKey: %q, IdentityFile: %q}
    git: {name: A Person, email: person@example.test}
agents:
  sh: {bottle: dev, command: [sh]}
  wait: {bottle: dev, command: [sh, -c, "echo ready; cat"]}
`, o.key, mode, hostKey(o.t, "ssh.other.test"), o.otherKey()))
}

// otherKey is one that no host lets in.
func (o sshOwner) otherKey() string {
	o.t.Helper()
	file := o.key + "_other"
	if _, err := os.Stat(file); err == nil {
		return file
	}
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", file).CombinedOutput(); err != nil {
		o.t.Fatalf("make a key: %v %s", err, out)
	}
	return file
}

// TestGitOverSSH clones and pushes with a key that signs on the host. The key is
// nowhere in the sandbox; the same search finds what is there.
func TestGitOverSSH(t *testing.T) {
	leakcheck.Check(t)
	o := newSSHOwner(t, "")
	l := o.start("claude-bottle-ssh")
	work := t.Name() + fmt.Sprint(os.Getpid())
	r := o.exec(l.name, "sh", "-ec", `cd /workspace; git clone -q work:demo.git; cd demo; git checkout -q -b `+work+
		`; date >made; git add made; git commit -qm "Made in a bottle"; git push -q origin HEAD; git ls-remote origin `+work+` | cut -f1; git rev-parse HEAD; git log -1 --format='%an <%ae>'`)
	lines := strings.Split(r.stdout, "\n")
	if r.code != 0 || len(lines) != 4 || lines[0] != lines[1] || lines[2] != "A Person <person@example.test>" {
		t.Fatalf("exit %d:\n%s%s", r.code, r.stdout, r.stderr)
	}
	if out, err := exec.Command("git", "-c", "safe.directory=*", "--git-dir", filepath.Join(sshWorld(), "repos/demo.git"), "rev-parse", work).CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != lines[1] {
		t.Errorf("the host has %s, %v; want %s", out, err, lines[1])
	}
	// Also by the host's name, and with the keys that the agent lists.
	r = o.exec(l.name, "sh", "-c", "git ls-remote labgit@ssh.allowed.test:demo.git HEAD | wc -l; ssh-add -l | wc -l; stat -c '%a %U' $SSH_AUTH_SOCK")
	r.want(t, 0, "1\n2\n600 agent\n")

	// Two texts are searched for in one go: one that is there, in one file, and
	// the key, which that file does not hold.
	texts := strings.Fields(hostKey(t, "ssh.other.test"))[1] + "\n" + o.secret + "\n"
	o.says(texts).exec(l.name, "sh", "-c", "grep -rlF -f - / --exclude-dir=proc --exclude-dir=sys 2>/dev/null; true").want(t, 0, "/.bottle/ssh/known_hosts\n")
	o.says(o.secret+"\n").exec(l.name, "sh", "-c", "grep -F -f - /.bottle/ssh/known_hosts /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null || echo none").want(t, 0, "none\n")
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}

// stubborn has ssh take any host key and the agent's key for the first host.
const stubborn = "-o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o IdentitiesOnly=no -o IdentityFile=/.bottle/ssh/key-1-1.pub"

// TestSSHWalls asks for signatures for a host that the key is not listed for,
// with a host that would take the key; and for a port that no entry names.
func TestSSHWalls(t *testing.T) {
	leakcheck.Check(t)
	o := newSSHOwner(t, "")
	l := o.start("claude-bottle-sshwalls")
	// The control: the same key opens the other host.
	control := exec.Command("ssh", "-F", "none", "-i", o.key, "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "labgit@198.51.101.23", "git-upload-pack '/nowhere'")
	out, err := control.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "does not appear to be a git repository") {
		t.Fatalf("the key does not open the other host, so that the test shows nothing: %v\n%s", err, out)
	}
	ask := func(args string) result {
		return o.exec(l.name, "sh", "-c", "ssh -v "+args+" \"git-upload-pack '/nowhere'\" </dev/null")
	}
	r := ask(stubborn + " work")
	if !strings.Contains(r.stderr, "does not appear to be a git repository") {
		t.Errorf("the listed host: exit %d\n%s", r.code, r.stderr)
	}
	r = ask(stubborn + " other")
	if r.code != 255 || !strings.Contains(r.stderr, "Permission denied (publickey)") || !strings.Contains(r.stderr, "agent refused operation") {
		t.Errorf("a host that the key is not listed for: exit %d\n%s", r.code, r.stderr)
	}
	// Another user of the listed host.
	r = ask(stubborn + " -l labother work")
	if r.code != 255 || !strings.Contains(r.stderr, "agent refused operation") {
		t.Errorf("a user that the key is not listed for: exit %d\n%s", r.code, r.stderr)
	}
	// Only logins are signed, not commits.
	r = o.exec(l.name, "sh", "-c", "echo text >/tmp/text; ssh-keygen -Y sign -f /.bottle/ssh/key-1-1.pub -n git /tmp/text")
	if r.code == 0 || !strings.Contains(r.stderr, "agent refused operation") {
		t.Errorf("a file: exit %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	// A login that does not name the host's key, as with a server that does not offer it.
	r = ask(stubborn + " -o PubkeyAuthentication=unbound work")
	if r.code != 255 || !strings.Contains(r.stderr, "agent refused operation") {
		t.Errorf("a login that names no host key: exit %d\n%s", r.code, r.stderr)
	}
	o.wantSignatures(l.name)
	// The server listens on 2222 too.
	if conn, err := net.Dial("tcp", "198.51.101.22:2222"); err != nil {
		t.Errorf("the other port is closed, so that the test shows nothing: %v", err)
	} else {
		_ = conn.Close()
	}
	r = ask("-p 2222 -o BatchMode=yes work")
	if r.code != 255 || !strings.Contains(r.stderr, "egress proxy: ") || !strings.Contains(r.stderr, "port not in allowlist") {
		t.Errorf("another port: exit %d\n%s", r.code, r.stderr)
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
	for _, want := range []string{"ssh:work", "ssh:other", "hint: PubkeyAuthentication: unbound in the ssh entry permits it"} {
		if !strings.Contains(l.errs.String(), want) {
			t.Errorf("the summary lacks %q:\n%s", want, l.errs)
		}
	}
}

// wantSignatures verifies that the log of egress has the signatures that TestSSHWalls
// requested, in their order and after the connection that each was for.
func (o sshOwner) wantSignatures(name string) {
	o.t.Helper()
	type entry struct {
		Verdict, Destination, Scanner, Reason string
		SSH                                   *struct{ User, Key string }
	}
	var got, order []string
	for line := range strings.Lines(o.bottle("egress", name, "--json").stdout) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			o.t.Fatalf("%v: %s", err, line)
		}
		if e.SSH == nil {
			order = append(order, e.Destination)
			continue
		}
		order = append(order, "sign")
		got = append(got, strings.TrimSpace(strings.Join([]string{e.Verdict, e.Destination, e.SSH.User, e.Scanner}, " ")))
		if !strings.HasPrefix(e.SSH.Key, "SHA256:") || (e.Reason == "") != (e.Verdict == "allowed") {
			o.t.Errorf("%s", line)
		}
	}
	want := []string{
		"allowed ssh:work labgit", "refused ssh:other labgit ssh", "refused ssh:work labother ssh",
		"refused ssh:(unlisted host)  ssh", "refused ssh:work labgit ssh_unbound",
	}
	// ssh asks again with other algorithms after a refusal.
	if got := slices.Compact(got); !slices.Equal(got, want) {
		o.t.Errorf("signatures %q, want %q", got, want)
	}
	if first := slices.Index(order, "sign"); first < 1 || order[first-1] != "ssh.allowed.test:22" {
		o.t.Errorf("order %q", order)
	}
	r := o.bottle("egress", name, "--denied")
	for _, want := range []string{"ssh:other", "user labother", "not an authentication request", "PubkeyAuthentication: unbound"} {
		if !strings.Contains(r.stdout, want) {
			o.t.Errorf("the log of refusals lacks %q:\n%s%s", want, r.stdout, r.stderr)
		}
	}
}

// TestSSHKeys checks the other sources of a key: with a passphrase, in
// the caller's agent, and copied.
func TestSSHKeys(t *testing.T) {
	leakcheck.Check(t)
	const look = "git ls-remote work:demo.git HEAD | wc -l"
	t.Run("passphrase", func(t *testing.T) {
		leakcheck.Check(t)
		o := newSSHOwner(t, "open sesame")
		x := o.onTerminal(100, 40, "run", "sh", "--proxy", "builtin", "--yes", "--", "-c", look)
		x.until("Passphrase of " + o.key + ": ")
		x.types("not it\r")
		x.until("Passphrase of " + o.key + ": ")
		x.types("open sesame\r")
		x.until("1\r\n")
		if code := x.wait(); code != 0 {
			t.Errorf("exit %d", code)
		}
		x = o.onTerminal(200, 40, "run", "sh", "--proxy", "builtin", "--yes")
		for range 3 {
			x.until("Passphrase of " + o.key + ": ")
			x.types("not it\r")
		}
		x.until("bottle: unlock the ssh key " + o.key + ": incorrect passphrase\r\n")
		if code := x.wait(); code != 125 {
			t.Errorf("exit %d", code)
		}
		r := o.bottle("run", "sh", "--proxy", "builtin", "--yes", "--no-input", "--", "-c", look)
		if r.code != 125 || !strings.Contains(r.stderr, "cannot ask for the passphrase of ") {
			t.Errorf("--no-input: exit %d\n%s", r.code, r.stderr)
		}
	})
	t.Run("own agent", func(t *testing.T) {
		leakcheck.Check(t)
		o := newSSHOwner(t, "open sesame")
		own := o.with("SSH_AUTH_SOCK=" + serveAgent(t, o.private))
		own.run("sh", "-c", look).want(t, 0, "1\n")
		o.key += ".pub"
		o.manifest("")
		own.run("sh", "-c", look).want(t, 0, "1\n")
		if r := o.run("sh", "-c", look); r.code != 125 || !strings.Contains(r.stderr, "does not have the private key") {
			t.Errorf("without an agent: exit %d\n%s", r.code, r.stderr)
		}
	})
	t.Run("copy", func(t *testing.T) {
		leakcheck.Check(t)
		o := newSSHOwner(t, "")
		o.manifest(", mode: copy")
		// The control for the search in TestGitOverSSH.
		r := o.user.says(o.secret+"\n").run("sh", "-c", "grep -rlF -f - /.bottle; "+look+"; stat -c '%a %U' /.bottle/ssh/key-1; ssh-add -l | wc -l")
		r.want(t, 0, "/.bottle/ssh/key-1\n1\n600 agent\n1\n")
		if !strings.Contains(r.stderr, "WARNING") || !strings.Contains(r.stderr, "is copied into the bottle") {
			t.Errorf("no warning:\n%s", r.stderr)
		}
	})
	t.Run("unknown host", func(t *testing.T) {
		leakcheck.Check(t)
		o := newSSHOwner(t, "")
		r := o.with("HOME="+t.TempDir()).run("sh", "-c", look)
		if r.code != 125 || !strings.Contains(r.stderr, "unknown host key of work") {
			t.Errorf("exit %d\n%s", r.code, r.stderr)
		}
	})
}

// TestSSHElsewhere connects to hosts without an ssh entry: the proxy refuses them,
// also if the port is allowed for the web, and logs the reason.
func TestSSHElsewhere(t *testing.T) {
	leakcheck.Check(t)
	u := newUser(t)
	u.write("bottle.yaml", `
version: 1
bottles:
  dev: {egress: {allow: ["ssh.allowed.test:22"]}}
agents:
  wait: {bottle: dev, command: [sh, -c, "echo ready; cat"]}
`)
	l := u.start("claude-bottle-elsewhere")
	for args, want := range map[string]string{
		"labgit@ssh.other.test":           "connect to ssh.other.test:22: egress proxy: CONNECT blocked: domain not in allowlist: ssh.other.test",
		"-p 2222 labgit@ssh.allowed.test": "port not in allowlist",
		"labgit@ssh.allowed.test":         "Connection closed by remote host",
		"localhost":                       "connect to host localhost port 22: Connection refused",
	} {
		r := u.exec(l.name, "sh", "-c", "ssh -o BatchMode=yes -o StrictHostKeyChecking=no "+args+" true </dev/null")
		if r.code != 255 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: exit %d, want %q in\n%s", args, r.code, want, r.stderr)
		}
	}
	r := u.bottle("egress", l.name, "--denied")
	for _, want := range []string{"ssh.other.test:22", "ssh.allowed.test:2222", "only ssh entries may carry"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("the log of refusals lacks %q:\n%s%s", want, r.stdout, r.stderr)
		}
	}
	if code := l.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, l.errs)
	}
}

// serveAgent is a caller's own ssh agent.
func serveAgent(t *testing.T, key ed25519.PrivateKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = agent.ServeAgent(ring, conn) // ends with the client
				_ = conn.Close()
			}()
		}
	}()
	return socket
}
