package bottle

import (
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/sshagent"
)

// TestSSHFaults fails the start of the ssh agent's relay, before and after it runs:
// nothing may be left.
func TestSSHFaults(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	key, hostKey := newKey(t)
	s := testSpec(t, fmt.Sprintf(`
version: 1
bottles:
  dev: {ssh: [{Host: a, HostKey: %s, IdentityFile: key}]}
agents:
  it: {bottle: dev, command: [sh], prompt: a prompt}
`, hostKey))
	if err := os.WriteFile(filepath.Join(s.Caller.WorkDir, "key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	plan := prepare(t, e, s)
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("after=%v", after), func(t *testing.T) {
			leakcheck.Check(t)
			defer setHooks(e, testHooks{step: func(step string, done bool) error {
				if step == "start ssh agent" && done == after {
					return errInjected
				}
				return nil
			}})()
			if b, err := e.Launch(t.Context(), plan); !errors.Is(err, errInjected) || b != nil {
				t.Fatalf("Launch = %v, %v; want the injected error", b, err)
			}
		})
	}
	// The relay ends with the bottle, not with its sessions.
	b, err := e.Launch(t.Context(), plan)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if out, code := output(t, e, b.Name, "sh", "-c", "ssh-add -l | wc -l"); code != 0 || out != "1\n" {
			t.Errorf("the agent has %q keys, exit %d", out, code)
		}
	}
	// A process with the relay's user ID can write to the relay's output. Such input is
	// refused and has no effect on the host.
	hijack := `for p in /proc/[0-9]*; do
		if [ "$(tr '\0' ' ' <$p/cmdline)" = "/.bottle/init agent /.bottle/run/ssh-agent.sock " ]; then
			head -c 24 /dev/zero >$p/fd/1 && echo written
			head -c 100000000 /dev/zero >$p/fd/2 && echo written
			head -c 65536 /dev/urandom >$p/fd/1 && echo written
		fi
	done`
	before := heapBytes()
	if out, code := output(t, e, b.Name, "sh", "-c", hijack); code != 0 || out != "written\nwritten\nwritten\n" {
		t.Errorf("invalid test: cannot write to the relay's output: %q, exit %d", out, code)
	}
	if after := heapBytes(); after > before+10<<20 {
		t.Errorf("100 MB of the relay's standard error occupy %d bytes on the host", after-before)
	}
	if out, code := output(t, e, b.Name, "echo", "alive"); code != 0 || out != "alive\n" {
		t.Errorf("the bottle does not work afterwards: %q, exit %d", out, code)
	}
	remove(t, b)
	select {
	case <-b.relay.Done():
	default:
		t.Error("the relay is still running after the removal")
	}
}

func heapBytes() uint64 {
	var m goruntime.MemStats
	goruntime.GC()
	goruntime.ReadMemStats(&m)
	return m.HeapAlloc
}

// newKey creates a key pair: the private key in PEM, the public one as a line.
func newKey(t *testing.T) (private []byte, public string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(priv, "")
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block), sshagent.Line(key)
}
