package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/bot-bottle/bottle/internal/bytesearch"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/segment"
)

const shapeImage = "registry.test/pipelock:2.3.0"

// TestInjectInFrontOfPipelock: a process of its own inserts secrets, in front of an image
// that replaces pipelock and decides about every host. Neither the agent nor pipelock has
// the values, and nothing leads around that process that gets them.
func TestInjectInFrontOfPipelock(t *testing.T) {
	leakcheck.Check(t)
	labtest.PutImage(t, shapeImage, ocispec.ImageConfig{Entrypoint: []string{"/pipelock", "serve"}},
		map[string][]byte{"pipelock": labtest.Build(t, "github.com/bot-bottle/bottle/scripts/pipelockshape")})
	s := newInjectScene(t, "claude-bottle-front")
	s.front = true
	s.u.write("bottle.yaml", strings.Replace(injectManifest, "  dev:\n", "  dev:\n    proxy: {kind: pipelock, image: '"+shapeImage+"'}\n", 1))
	s.live = begin(t, s.u.command("run", "wait", "--yes", "--name", s.name), s.name)
	s.addKey()
	request := func(value string) string {
		return `curl -sS -H "Authorization: Bearer $GH_TOKEN" https://allowed.test/auth/` + hashOf(value) + "/"
	}
	s.want("a host with a secret", request(s.mine), "hello from allowed.test")
	s.want("terminated", `curl -sSv https://allowed.test/ | grep issuer`, "CN=bottle ")
	s.want("untouched", `curl -sSv https://sub.wild.test/ | grep issuer`, "bottle lab test authority")
	// The placeholder is worth nothing elsewhere; the control is a value that the agent has.
	to := func(variable, value string) string {
		return `curl -sS -H "Authorization: Bearer $` + variable + `" https://sub.wild.test/auth/` + hashOf(value) + "/"
	}
	s.want("another host", to("GH_TOKEN", s.mine), "wrong credential")
	s.want("control", to("PLAIN", s.gave), "hello from sub.wild.test")
	s.want("a host with another secret", `curl -sS -H "Authorization: Bearer $GH_TOKEN" https://wild.test/`, "not for wild.test:443")
	// Pipelock itself is not reached; the control is the process in front of it.
	s.want("around it", `for port in 8888 8889; do timeout 2 bash -c "exec 3<>/dev/tcp/10.77.0.1/$port" 2>/dev/null && echo "$port open" || echo "$port closed"; done`, "8888 open", "8889 closed")

	found := append(append(s.Processes(), s.Files("/run/bottle")...), s.Files(s.Roots()[2])...)
	places := s.checkPlaces(append(found, s.Memory(s.name)...))
	if !places["injected"] || !places["given"] || !places["given in the sandbox"] {
		t.Errorf("the search finds only %v", places)
	}
	s.wantApart()

	renewed := newToken("ghp_", 36)
	if r := s.u.says(renewed+"\n").bottle("secret", "set", s.name, "GH_TOKEN"); r.code != 0 {
		t.Errorf("secret set: exit %d\n%s", r.code, r.stderr)
	}
	s.want("another value", request(renewed), "hello from allowed.test")
	for _, container := range []string{".front", ".proxy"} {
		ctr(t, "tasks", "kill", "--signal", "SIGKILL", s.name+container)
		s.want(container+" was killed", "for i in $(seq 100); do "+request(renewed)+" && break; sleep 0.1; done", "hello from allowed.test")
	}
	// Pipelock refuses a host that has a secret. It alone logs that.
	s.u.bottle("deny", s.name, "allowed.test").want(t, 0, "")
	s.want("refused by pipelock", request(renewed), "403")
	refused, opened := 0, 0
	for line := range strings.Lines(s.u.bottle("egress", s.name).stdout) {
		if strings.Contains(line, "refused") && strings.Contains(line, "allowed.test:443") && !strings.Contains(line, "wild.test") {
			refused++
		}
		if strings.Contains(line, "allowed") && strings.Contains(line, "sub.wild.test:443") {
			opened++
		}
	}
	if refused != 1 || opened != 3 {
		t.Errorf("%d refusals and %d tunnels to the other host in the log, want 1 and 3:\n%s", refused, opened, s.u.bottle("egress", s.name).stdout)
	}
	s.wantLog("sent", "GH_TOKEN", "allowed.test")
	s.wantLog("refused", "wild.test:443", "not for wild.test:443")
	if code := s.live.end(); code != 0 {
		t.Errorf("exit %d\n%s", code, s.live.errs)
	}
}

// wantApart checks that pipelock has another user than the process in front of it, and has
// no value in its memory. The control is that process, which must have it.
func (s *injectScene) wantApart() {
	s.t.Helper()
	users, has := map[string]uint32{}, map[string]bool{}
	for pid, argv := range bytesearch.Arguments(s.t) {
		for _, file := range []string{"front.json", "pipelock.yaml"} {
			if !strings.Contains(argv, "/config/"+file) {
				continue
			}
			var st syscall.Stat_t
			if err := syscall.Stat(fmt.Sprintf("/proc/%d", pid), &st); err != nil {
				s.t.Fatal(err)
			}
			users[file] = st.Uid
			for _, f := range s.OwnMemory(pid) {
				has[file] = has[file] || strings.HasPrefix(f.Form, "injected")
			}
		}
	}
	if users["front.json"] != segment.FrontUID || users["pipelock.yaml"] != 65534 {
		s.t.Errorf("users of the proxy's processes: %v", users)
	}
	if !has["front.json"] || has["pipelock.yaml"] {
		s.t.Errorf("processes with the value in their memory: %v", has)
	}
}
