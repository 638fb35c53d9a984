package e2e

import (
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestMemoryLimitReported runs an agent that exceeds its memory limit: the end of
// the session names the limit, its value and the key that raises it, and the exit code
// is docker's. The control stays below the limit.
func TestMemoryLimitReported(t *testing.T) {
	for _, runtime := range []string{"runsc", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			leakcheck.Check(t)
			u := newUser(t)
			u.write("bottle.yaml", `version: 1
bottles:
  dev: {image: "bottle-demo:latest", limits: {memory: 128MiB}}
agents:
  hog: {bottle: dev, command: [sh, -c, "x=x; while :; do x=$x$x; done"]}
  small: {bottle: dev, command: [sh, -c, "exit 3"]}
`)
			r := u.run("hog", "--runtime", runtime)
			if r.code != 137 || !strings.Contains(r.stderr, "The bottle's limit of 128 MiB of memory was reached.\nhint: raise limits.memory in the manifest\n") {
				t.Errorf("exit %d, %q", r.code, r.stderr)
			}
			if strings.Contains(r.stderr, "urpc") || strings.Contains(r.stdout, "urpc") {
				t.Errorf("a message of the runtime's own is shown: %q", r.stderr+r.stdout)
			}
			if r := u.run("small", "--runtime", runtime); r.code != 3 || strings.Contains(r.stderr, "limit of") {
				t.Errorf("control: exit %d, %q", r.code, r.stderr)
			}
		})
	}
}

// TestLimitsReported: the end of a session names the limit of disk or processes that it
// reached, its value and the key that raises it. The exit code is the command's own.
func TestLimitsReported(t *testing.T) {
	for _, tt := range []struct{ runtime, limits, command, want string }{
		{"runsc", "disk: 64MiB", "dd if=/dev/zero of=/tmp/x bs=1M count=200", "64 MiB of disk was reached.\nhint: raise limits.disk in the manifest"},
		{"runc", "pids: 32", "for i in $(seq 100); do sleep 20 & done", "32 processes was reached.\nhint: raise limits.pids in the manifest"},
	} {
		t.Run(tt.limits, func(t *testing.T) {
			leakcheck.Check(t)
			u := newUser(t)
			u.write("bottle.yaml", `version: 1
bottles:
  dev: {image: "bottle-demo:latest", limits: {`+tt.limits+`}}
agents:
  sh: {bottle: dev, command: [sh, -c]}
`)
			run := func(command string) result {
				return u.bottle("run", "sh", "--proxy", "builtin", "--yes", "--runtime", tt.runtime, "--", command+"; exit 7")
			}
			if r := run(tt.command); r.code == 0 || r.code == 125 || !strings.Contains(r.stderr, "The bottle's limit of "+tt.want+"\n") {
				t.Errorf("exit %d, %q", r.code, r.stderr)
			}
			if r := run("true"); r.code != 7 || strings.Contains(r.stderr, "limit of") {
				t.Errorf("control: exit %d, %q", r.code, r.stderr)
			}
		})
	}
}
