package e2e

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// bridge connects standard input and output to the bottle's ssh agent.
const bridge = `use Socket; $| = 1;
socket(S, AF_UNIX, SOCK_STREAM, 0) && connect(S, sockaddr_un($ENV{SSH_AUTH_SOCK})) || die $!;
if (fork) { syswrite(S, $b) while sysread(STDIN, $b, 65536); shutdown(S, 1); wait }
else { syswrite(STDOUT, $b) while sysread(S, $b, 65536) }`

// thief is the ssh agent of an attacker outside who holds the private key of a
// listed host, and for whom the agent in the bottle passes requests to its ssh
// agent. It binds each session as if the listed host had signed it.
type thief struct {
	agent.ExtendedAgent
	hostKey ssh.Signer
}

func (a thief) Extension(name string, contents []byte) ([]byte, error) {
	var m struct {
		HostKey, SessionID, Signature []byte
		Forwarding                    bool
	}
	if err := ssh.Unmarshal(contents, &m); err != nil {
		return nil, err
	}
	sig, err := a.hostKey.Sign(nil, m.SessionID)
	if err != nil {
		return nil, err
	}
	m.HostKey, m.Signature = a.hostKey.PublicKey().Marshal(), ssh.Marshal(sig)
	return a.ExtendedAgent.Extension(name, ssh.Marshal(m))
}

// steal serves the attacker's agent and returns its socket. stop returns when the last bridge has
// ended, which needs the bottle.
func (o sshOwner) steal(name string) (socket string, stop func()) {
	o.t.Helper()
	text, err := os.ReadFile(filepath.Join(sshWorld(), "ssh.allowed.test"))
	if err != nil {
		o.t.Fatal(err)
	}
	hostKey, err := ssh.ParsePrivateKey(text)
	if err != nil {
		o.t.Fatal(err)
	}
	socket = filepath.Join(o.t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		o.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			cmd := o.command("exec", name, "perl", "-e", bridge)
			in, ierr := cmd.StdinPipe()
			out, oerr := cmd.StdoutPipe()
			if ierr != nil || oerr != nil || cmd.Start() != nil {
				o.t.Errorf("start the bridge: %v, %v", ierr, oerr)
				return
			}
			inside := agent.NewClient(struct {
				io.Reader
				io.Writer
			}{out, in})
			_ = agent.ServeAgent(thief{inside, hostKey}, conn) // ends with the client
			_, _ = conn.Close(), in.Close()
			if err := cmd.Wait(); err != nil {
				o.t.Errorf("bridge: %v", err)
			}
		}
	}()
	stop = func() { _ = l.Close(); <-done }
	o.t.Cleanup(stop)
	return socket, stop
}

// TestSSHStolenHostKey checks that the holder of a listed host's private key cannot log
// in at an unlisted host, whose server would accept the key. The control is an
// entry with PubkeyAuthentication: unbound.
func TestSSHStolenHostKey(t *testing.T) {
	const in, refused = "does not appear to be a git repository", "agent refused operation"
	for name, c := range map[string]struct {
		entry              string
		hostBound, unbound string // what the attacker's ssh prints
	}{
		"host-bound": {"", refused, refused},
		"control":    {", PubkeyAuthentication: unbound", refused, in},
	} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			o := newSSHOwner(t, "")
			o.manifest(c.entry)
			l := o.start("claude-bottle-stolen")
			socket, stop := o.steal(l.name)
			for method, want := range map[string]string{"host-bound": c.hostBound, "unbound": c.unbound} {
				out, _ := exec.Command("ssh", "-F", "none", "-o", "IdentityAgent="+socket, "-o", "IdentitiesOnly=yes", "-i", o.key+".pub", "-o", "BatchMode=yes",
					"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "PubkeyAuthentication="+method,
					"labgit@198.51.101.23", "git-upload-pack '/nowhere'").CombinedOutput()
				if !strings.Contains(string(out), want) || strings.Contains(string(out), in) != (want == in) {
					t.Errorf("%s login at an unlisted host: want %q in\n%s", method, want, out)
				}
			}
			stop()
			if code := l.end(); code != 0 {
				t.Errorf("exit %d\n%s", code, l.errs)
			}
			if warned := strings.Contains(l.errs.String(), "is unbound: whoever holds a private key of that host"); warned != (c.entry != "") {
				t.Errorf("the plan:\n%s", l.errs)
			}
		})
	}
}
