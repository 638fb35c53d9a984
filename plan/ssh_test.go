package plan

import (
	"crypto/ed25519"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/sshagent"
)

const testHostKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMXzLOKiMaFavzePnIti3zo3Ccxii84yQm7sMFRspFsd"

// testPrivate returns the private key number n, which is the same in each run.
func testPrivate(n byte) ed25519.PrivateKey {
	seed := make([]byte, ed25519.SeedSize)
	seed[0] = n
	return ed25519.NewKeyFromSeed(seed)
}

// testPublic returns the public key of number 1.
func testPublic(t *testing.T) string {
	t.Helper()
	key, err := ssh.NewPublicKey(testPrivate(1).Public())
	if err != nil {
		t.Fatal(err)
	}
	return sshagent.Line(key)
}

func testPEM(t *testing.T, n byte, passphrase string) string {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(testPrivate(n), "")
	if passphrase != "" {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(testPrivate(n), "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block))
}

// ownAgent runs the caller's ssh agent with one key.
func (s *scene) ownAgent(n byte) {
	s.t.Helper()
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: testPrivate(n)}); err != nil {
		s.t.Fatal(err)
	}
	l, err := net.Listen("unix", s.t.TempDir()+"/agent")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, conn) }()
		}
	}()
	s.env["SSH_AUTH_SOCK"] = l.Addr().String()
}

func TestPrepareSSHKeys(t *testing.T) {
	s := newScene(t, `ssh: [{Host: a, IdentityFile: ~/.ssh/a}, {Host: b, User: u, IdentityFile: keys/b, HostKey: `+testHostKey+`}, {Host: c, IdentityFile: ~/.ssh/a}, {Host: d}]`, "")
	s.write("home/.ssh/known_hosts", "a,c "+testHostKey+"\n"+knownhosts.HashHostname("d")+" "+testHostKey+"\nbroken\n", 0o600)
	s.write("home/.ssh/a", testPEM(t, 1, ""), 0o600)
	s.write("work/keys/b", testPEM(t, 2, ""), 0o600)
	want := []string{s.path("home/.ssh/a"), s.path("work/keys/b"), s.path("home/.ssh/a"), ""}
	plan := s.good()
	for i, h := range plan.SSH {
		if h.IdentityFile != want[i] || len(plan.ssh[i].HostKeys()) != 1 || sshagent.Line(plan.ssh[i].HostKeys()[0]) != testHostKey {
			t.Errorf("%s: got %s and host keys %v", h.Host, h.IdentityFile, plan.ssh[i].HostKeys())
		}
	}
	keys := provision.SSHKeys(plan.ssh)
	if len(keys) != 2 || len(keys[0].Hosts) != 2 || len(keys[1].Hosts) != 1 || keys[1].Hosts[0].User != "u" ||
		sshagent.Line(keys[0].Public) != testPublic(t) || len(provision.LockedKeys(plan.ssh)) != 0 || len(plan.Warnings) != 0 {
		t.Errorf("keys %v, warnings %q", keys, plan.Warnings)
	}
	s.write("home/.ssh/a", testPEM(t, 1, ""), 0o640)
	_, err := s.prepare()
	if got := hint.Split(err); len(got) != 2 || !strings.Contains(got[0].Error(), "ssh key of a") || hint.Of(got[0]) != "chmod 600 "+want[0] {
		t.Errorf("a key that others can read: %v", err)
	}
	s.write("home/.ssh/a", testPEM(t, 1, ""), 0o600)
	s.spec.Caller.UID += 4242
	_, err = s.prepare()
	if !slices.ContainsFunc(hint.Split(err), func(e error) bool { return strings.Contains(e.Error(), "cannot read "+want[1]+": permission denied") }) {
		t.Errorf("keys of another user: %v", err)
	}
}

// TestPrepareSSHUnbound checks which entries the agent signs unbound logins for, and
// that the plan says so.
func TestPrepareSSHUnbound(t *testing.T) {
	const github = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl"
	entry := "HostKey: " + testHostKey + ", IdentityFile: ~/.ssh/a"
	s := newScene(t, `ssh: [{Host: new, User: u, `+entry+`}, {Host: old, User: u, PubkeyAuthentication: unbound, `+entry+`}, {Host: any, PubkeyAuthentication: unbound, `+entry+`}, {Host: gh, HostName: github.com, HostKey: `+github+`, IdentityFile: ~/.ssh/a}]`, "")
	s.write("home/.ssh/a", testPEM(t, 1, ""), 0o600)
	plan := s.good()
	keys := provision.SSHKeys(plan.ssh)
	if len(keys) != 1 || len(keys[0].Hosts) != 4 {
		t.Fatalf("keys %+v", keys)
	}
	for i, want := range []struct {
		name, forge string
		unbound     bool
	}{{"new", "", false}, {"old", "", true}, {"any", "", true}, {"gh", "github.com", false}} {
		if got := keys[0].Hosts[i]; got.Name != want.name || got.Unbound != want.unbound || plan.SSH[i].Forge != want.forge {
			t.Errorf("host %+v, plan %+v", got, plan.SSH[i])
		}
	}
	for i, want := range []string{"host old is unbound: whoever holds a private key of that host can log in as user u at any server", "host any is unbound: whoever holds a private key of that host can log in as any user at any server"} {
		if len(plan.Warnings) != 2 || !strings.Contains(plan.Warnings[i], want) {
			t.Errorf("warnings %q, want %q", plan.Warnings, want)
		}
	}
}

func TestPrepareSSHErrors(t *testing.T) {
	entry := func(more string) string { return `ssh: [{Host: a, HostKey: ` + testHostKey + `, ` + more + `}]` }
	private := entry("IdentityFile: ~/.ssh/a")
	for name, c := range map[string]struct {
		bottle string
		set    func(s *scene)
		want   []string
	}{
		"too large":               {private, func(s *scene) { s.write("home/.ssh/a", strings.Repeat("x", (64<<10)+1), 0o600) }, []string{"larger than 65536 bytes"}},
		"missing":                 {private, func(*scene) {}, []string{"ssh key of a: missing file"}},
		"a directory":             {private, func(s *scene) { s.mkdir("home/.ssh/a") }, []string{"is not a regular file"}},
		"not a key":               {private, func(s *scene) { s.write("home/.ssh/a", "hunter2", 0o600) }, []string{"is not a supported private key"}},
		"locked":                  {private, func(s *scene) { s.write("home/.ssh/a", testPEM(s.t, 1, "pw"), 0o600); s.spec.NoInput = true }, []string{"cannot ask for the passphrase", "ssh-add"}},
		"public":                  {entry("IdentityFile: ~/.ssh/a.pub"), func(s *scene) { s.write("home/.ssh/a.pub", testPublic(s.t), 0o644) }, []string{"does not have the private key", "ssh-add"}},
		"other agent":             {entry("IdentityFile: ~/.ssh/a.pub"), func(s *scene) { s.write("home/.ssh/a.pub", testPublic(s.t), 0o644); s.ownAgent(2) }, []string{"does not have the private key"}},
		"no agent":                {entry("User: u"), func(s *scene) { s.env["SSH_AUTH_SOCK"] = "/nowhere" }, []string{"list the keys of your ssh agent"}},
		"bad public":              {entry("IdentityFile: ~/.ssh/a.pub"), func(s *scene) { s.write("home/.ssh/a.pub", "hunter2", 0o644) }, []string{"a.pub: not a public key"}},
		"no public":               {entry("IdentityFile: ~/.ssh/a.pub"), func(*scene) {}, []string{"missing file"}},
		"copy of a public one":    {entry("mode: copy, IdentityFile: ~/.ssh/a.pub"), func(*scene) {}, []string{"a public key, and mode: copy needs the private key"}},
		"copy of nothing":         {entry("mode: copy"), func(*scene) {}, []string{"missing IdentityFile, which mode: copy needs"}},
		"unknown host":            {"ssh: [{Host: a, Port: 2222}]", func(s *scene) { s.write("home/.ssh/known_hosts", "a "+testHostKey, 0o600) }, []string{"a:2222 is not in your ~/.ssh/known_hosts", "ssh -p 2222 a", "HostKey"}},
		"known_hosts a directory": {"ssh: [{Host: a}]", func(s *scene) { s.mkdir("home/.ssh/known_hosts") }, []string{"host key of a", "is not a regular file"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, c.bottle, "")
			c.set(s)
			s.bad(c.want...)
		})
	}
}

// TestUnlock checks that a locked key is taken from the caller's ssh agent if that has
// it, and that otherwise its passphrase is a question.
func TestUnlock(t *testing.T) {
	s := newScene(t, `ssh: [{Host: a, HostKey: `+testHostKey+`, IdentityFile: ~/.ssh/a}]`, "")
	s.write("home/.ssh/a", testPEM(t, 1, "open sesame"), 0o600)
	plan := s.good()
	if got := provision.LockedKeys(plan.ssh); len(got) != 1 || got[0] != s.path("home/.ssh/a") || len(provision.SSHKeys(plan.ssh)) != 0 {
		t.Fatalf("locked %q", got)
	}
	if err := plan.Answer(plan.Questions()[0], secret.New("wrong")); err == nil || !strings.Contains(err.Error(), "incorrect passphrase") {
		t.Errorf("a wrong passphrase: %v", err)
	}
	if err := plan.Answer(plan.Questions()[0], secret.New("open sesame")); err != nil || len(provision.LockedKeys(plan.ssh)) != 0 || len(provision.SSHKeys(plan.ssh)) != 1 {
		t.Errorf("the right passphrase: %v, locked %q", err, provision.LockedKeys(plan.ssh))
	}
	s.ownAgent(1)
	s.spec.NoInput = true
	if plan := s.good(); len(provision.LockedKeys(plan.ssh)) != 0 || len(provision.SSHKeys(plan.ssh)) != 1 {
		t.Error("the passphrase of a key in the caller's agent is a question")
	}
	if strings.Contains(planJSON(t, plan), "PRIVATE KEY") {
		t.Error("the plan shows the key")
	}
}

func TestSSHConfig(t *testing.T) {
	s := newScene(t, `ssh: [{Host: work, HostName: git.test, User: git, HostKey: `+testHostKey+`, IdentityFile: ~/.ssh/a}, {Host: home, HostName: git.test, Port: 2222, mode: copy, IdentityFile: ~/.ssh/b, HostKey: `+testHostKey+`}]`, "")
	s.write("home/.ssh/a", testPEM(t, 1, ""), 0o600)
	s.write("home/.ssh/b", testPEM(t, 2, "pw"), 0o600)
	plan := s.good()
	files := map[string]string{}
	for _, f := range plan.Provisions().GuestFiles(provision.Image{}) {
		if name, ok := strings.CutPrefix(f.Name, "ssh/"); ok {
			files[name] = string(f.Data)
		}
	}
	if files["key-1-1.pub"] != testPublic(t)+"\n" || files["key-2"] == "" ||
		files["known_hosts"] != "git.test "+testHostKey+"\n[git.test]:2222 "+testHostKey+"\n" {
		t.Errorf("files %q", files)
	}
	for name, text := range files {
		if strings.Contains(text, "PRIVATE KEY") != (name == "key-2") {
			t.Errorf("%s holds %s", name, text)
		}
	}
	if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], "is copied into the bottle for home") {
		t.Errorf("warnings %q", plan.Warnings)
	}
	// The configuration as ssh itself reads it, for both entries and by host name.
	config := t.TempDir() + "/config"
	if err := os.WriteFile(config, []byte(files["config"]), 0o600); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string][]string{
		"work":      {"hostname git.test", "user git", "port 22", "proxycommand /.bottle/init connect 10.77.0.1:8888 %h %p", "stricthostkeychecking true", "identityagent /.bottle/run/ssh-agent.sock", "identityfile /.bottle/ssh/key-1-1.pub", "userknownhostsfile /.bottle/ssh/known_hosts", "serveraliveinterval 30"},
		"git.test":  {"hostname git.test", "user git", "port 22"},
		"home":      {"hostname git.test", "port 2222", "identityagent none", "identityfile /.bottle/ssh/key-2"},
		"localhost": {"port 22"},
		"else.test": {"port 22", "proxycommand /.bottle/init connect 10.77.0.1:8888 %h %p"},
	} {
		got := sshView(t, config, host)
		if host == "localhost" && strings.Contains(got, "proxycommand") {
			t.Errorf("connections to the sandbox itself use the proxy:\n%s", got)
		}
		for _, w := range want {
			if !strings.Contains(got, "\n"+w+"\n") {
				t.Errorf("%s: missing %q in\n%s", host, w, got)
			}
		}
	}
}

// TestSSHConfigNames checks that the Host of an entry is never used for the HostName of
// another entry, in any order.
func TestSSHConfigNames(t *testing.T) {
	s := newScene(t, `ssh: [{Host: work, HostName: git.test, User: a, HostKey: `+testHostKey+`}, {Host: git.test, User: b, HostKey: `+testHostKey+`}, {Host: again, HostName: git.test, User: c, HostKey: `+testHostKey+`}, {Host: other, HostName: x.test, HostKey: `+testHostKey+`}, {Host: third, HostName: x.test, User: d, HostKey: `+testHostKey+`}]`, "")
	config := t.TempDir() + "/config"
	for _, f := range s.good().Provisions().GuestFiles(provision.Image{}) {
		if f.Name == "ssh/config" {
			if err := os.WriteFile(config, f.Data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for host, want := range map[string]string{"work": "user a\n", "git.test": "user b\n", "again": "user c\n", "third": "user d\n"} {
		if got := sshView(t, config, host); !strings.Contains(got, "\n"+want) {
			t.Errorf("%s: missing %q in\n%s", host, want, got)
		}
	}
	if got := sshView(t, config, "x.test"); !strings.Contains(got, "\nidentityagent "+provision.GuestSSHSocket) || strings.Contains(got, "\nuser d\n") {
		t.Errorf("x.test does not use the first entry:\n%s", got)
	}
}

func sshView(t *testing.T, config, host string) string {
	t.Helper()
	out, err := exec.Command("ssh", "-G", "-F", config, host).CombinedOutput()
	if err != nil {
		t.Fatalf("ssh -G: %v\n%s", err, out)
	}
	return "\n" + string(out)
}
