package e2e

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bot-bottle/bottle/internal/bytesearch"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

const secretManifest = `
version: 1
bottles:
  dev:
    env:
      FORWARDED: {from: CALLERS}
      ASKED: {prompt: "The key"}
      FILE: {file: key}
agents:
  it: {bottle: dev, command: [sh, -c, 'echo "${#FORWARDED} ${#ASKED} ${#FILE}, ready"; cat']}
`

// secretScene is a bottle with a secret of each source, and a session with two.
type secretScene struct {
	*bytesearch.Search
	t       *testing.T
	u       user
	name    string
	secrets map[string]string // by source
	args    []string          // of bottle run
	bottle  *terminal
	session *live
	out     string // all that bottle wrote
}

// TestSecretsAtRest searches the complete host for the values of a running bottle,
// and again after its removal. They may be in the environment of bottle's own
// process, where the caller put them, in the caller's own file, and in the one
// place on tmpfs that docs/manifest.md names.
func TestSecretsAtRest(t *testing.T) {
	leakcheck.Check(t)
	s := newSecretScene(t, "claude-bottle-secrets")
	s.args = append(s.args, "--name", s.name)
	s.u.write("bottle.yaml", secretManifest)
	s.u = s.u.with("CALLERS="+s.secrets["forwarded"], "SESSIONS="+s.secrets["session"])

	stop := s.Sample()
	s.start()
	passing, looks := stop()
	t.Logf("all processes were looked at %d times during the launch", looks)
	s.check("during the launch", passing)
	places := s.check("while it is up", s.Everywhere(s.texts()))
	// The control: the values are inside, so that the search could find them.
	s.checkPlaces(places)
	s.checkCores()
	t.Run("control", func(t *testing.T) { control(t, s.name) })

	s.endSession()
	places = s.check("after the session", s.Everywhere(s.texts()))
	if places["session"] || places["descriptor"] || !places["forwarded"] {
		t.Errorf("after the session bottle's directory holds %v", places)
	}
	stop = s.Sample()
	s.end()
	passing, looks = stop()
	t.Logf("all processes were looked at %d times during the teardown", looks)
	s.check("during the teardown", passing)
	if places := s.check("when it is gone", s.Everywhere(s.texts())); len(places) > 0 {
		t.Errorf("still in bottle's directory: %v", places)
	}
}

// TestSecretsOfClaimed: the values of a run that has claimed a prepared bottle are in the
// same places, also while another bottle is being prepared, and neither in that one nor in
// the process that prepares it.
func TestSecretsOfClaimed(t *testing.T) {
	leakcheck.Check(t)
	s := newSecretScene(t, "claude-bottle-it")
	poor := s.u // has no value
	s.u = s.u.with("CALLERS="+s.secrets["forwarded"], "SESSIONS="+s.secrets["session"])
	s.u.write("bottle.yaml", strings.NewReplacer(
		"    env:", "    proxy: {kind: builtin}\n    env:", "; cat']}", "; cat'], pool: 1}",
	).Replace(secretManifest))
	if r := poor.bottle("pool", "fill", "--trust"); r.code != 0 {
		t.Fatalf("exit %d\n%s", r.code, r.stderr)
	}
	defer func() {
		if r := poor.bottle("pool", "drain"); r.code != 0 {
			t.Errorf("exit %d\n%s", r.code, r.stderr)
		}
	}()
	stop := s.Sample()
	s.start()
	poor.waitPrepared("claude-bottle-it-2")
	passing, looks := stop()
	t.Logf("all processes were looked at %d times", looks)
	s.check("until the next bottle was prepared", passing)
	places := s.check("while it is up", s.Everywhere(s.texts()))
	s.checkPlaces(places)
	s.endSession()
	s.end()
}

// checkPlaces checks that the search finds in bottle's directory what must be there. The
// variables of a session are nowhere on the host: they reach the sandbox through a socket.
func (s *secretScene) checkPlaces(places map[string]bool) {
	s.u.t.Helper()
	for source := range s.secrets {
		if want := source != "session" && source != "descriptor"; places[source] != want {
			s.u.t.Errorf("%s in bottle's directory: %v, want %v", source, places[source], want)
		}
	}
}

// waitPrepared waits until the pools consist of one bottle.
func (u user) waitPrepared(name string) {
	u.t.Helper()
	for end := time.Now().Add(longest); ; {
		var pool []struct{ Name, State string }
		r := u.bottle("pool", "list", "--json")
		if err := json.Unmarshal([]byte(r.stdout), &pool); err != nil {
			u.t.Fatalf("%v\n%s%s", err, r.stdout, r.stderr)
		}
		if len(pool) == 1 && pool[0].Name == name && pool[0].State == "prepared" {
			return
		}
		if time.Now().After(end) {
			u.t.Fatalf("prepared: %v", pool)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// newSecretScene makes a secret of each source.
func newSecretScene(t *testing.T, name string) *secretScene {
	t.Helper()
	s := &secretScene{Search: bytesearch.New(t), t: t, u: newUser(t), name: name, secrets: map[string]string{}}
	for source, more := range map[string]string{"forwarded": odd, "asked": "'=/+ é", "file": odd, "session": odd, "descriptor": odd} {
		s.secrets[source] = "s3-" + rand.Text() + more
		s.Add(source, s.secrets[source])
	}
	s.u.write("key", s.secrets["file"]+"\n")
	s.args = []string{"run", "it", "--proxy", "builtin", "--yes", "--debug"}
	return s
}

// start launches the bottle on a terminal, answers it, and starts the session.
func (s *secretScene) start() {
	t := s.t
	t.Helper()
	s.bottle = s.u.onTerminal(80, 24, s.args...)
	s.out = s.bottle.until(`"The key"): `)
	s.bottle.types(s.secrets["asked"] + "\n")
	s.out += s.bottle.until("ready\r\n")
	// The shell counts characters, of which é is one.
	want := fmt.Sprintf("%d %d %d, ready", runes(s.secrets["forwarded"]), runes(s.secrets["asked"]), runes(s.secrets["file"]))
	inBytes := fmt.Sprintf("%d %d %d, ready", len(s.secrets["forwarded"]), len(s.secrets["asked"]), len(s.secrets["file"]))
	if !strings.Contains(s.out, want) && !strings.Contains(s.out, inBytes) {
		t.Fatalf("the agent does not have its variables:\n%s", s.out)
	}
	cmd := s.u.command("exec", "--debug", "-e", "SESSIONS", "--env-from-fd", "3", s.name, "sh", "-c", `[ -n "$SESSIONS" ] && [ -n "$GIVEN" ] && echo ready; cat`)
	cmd.ExtraFiles = append(cmd.ExtraFiles, piped(t, "GIVEN="+s.secrets["descriptor"]+"\x00"))
	s.session = begin(t, cmd, s.name)
}

func runes(s string) int { return len([]rune(s)) }

func (s *secretScene) endSession() {
	s.t.Helper()
	if code := s.session.end(); code != 0 {
		s.t.Errorf("the session: exit %d\n%s", code, s.session.errs)
	}
}

// end ends the bottle, and keeps what it wrote.
func (s *secretScene) end() {
	t := s.t
	t.Helper()
	s.bottle.types("\x04")
	if code := s.bottle.wait(); code != 0 {
		t.Errorf("the bottle: exit %d", code)
	}
	const end = "all that was written"
	if _, err := s.bottle.far.WriteString(end); err != nil {
		t.Fatal(err)
	}
	s.out += s.bottle.until(end)
}

// texts are what bottle writes: to the terminal, with --debug, and as plans.
func (s *secretScene) texts() map[string]string {
	plan := s.u.bottle("run", "it", "--proxy", "builtin", "--dry-run", "--json")
	refused := s.u.bottle("run", "it", "--proxy", "builtin", "--yes", "--no-input")
	return map[string]string{
		"terminal": s.out, "session's stderr": s.session.errs.String(),
		"plan": plan.stdout + plan.stderr, "message": refused.stderr, "config show": s.u.bottle("config", "show", "--json").stdout,
	}
}

// check fails for all that was found where it may not be. It returns the sources
// that were found in bottle's place on tmpfs.
func (s *secretScene) check(when string, found []bytesearch.Find) map[string]bool {
	t := s.t
	t.Helper()
	caller := map[string]bool{
		"environ of " + strconv.Itoa(s.bottle.cmd.Process.Pid):  true,
		"environ of " + strconv.Itoa(s.session.cmd.Process.Pid): true,
		filepath.Join(s.u.dir, "key"):                           true,
	}
	guest := regexp.MustCompile(`^/run/bottle/[^/]+/` + s.name + `/guest/env(-[A-Z2-7]+)?$`)
	places := map[string]bool{}
	for _, f := range found {
		source, _, _ := strings.Cut(f.Form, ", ")
		switch {
		case guest.MatchString(f.Place):
			places[source] = true
		case !caller[f.Place]:
			t.Errorf("%s: %s: %s", when, f.Place, f.Form)
		}
	}
	return places
}

// checkCores looks at what the kernel would write of the processes whose memory
// has the values.
func (s *secretScene) checkCores() {
	t := s.t
	t.Helper()
	sandboxes := 0
	for pid, argv := range bytesearch.Arguments(t) {
		sandbox := strings.Contains(argv, "runsc-sandbox") || strings.Contains(argv, "runsc-gofer")
		if sandbox && strings.Contains(argv, s.name) {
			sandboxes++
			if filter := readProc(t, pid, "coredump_filter"); strings.Trim(filter, "0\n") != "" {
				t.Errorf("a core of %s would have memory: filter %s", argv, filter)
			}
		} else if pid != s.bottle.cmd.Process.Pid && pid != s.session.cmd.Process.Pid {
			continue
		}
		if !coreLimit.MatchString(readProc(t, pid, "limits")) {
			t.Errorf("%s may leave a core:\n%s", argv, readProc(t, pid, "limits"))
		}
	}
	if sandboxes < 2 {
		t.Errorf("%d host processes of the sandbox were seen; there are two", sandboxes)
	}
}

var coreLimit = regexp.MustCompile(`(?m)^Max core file size +0 +0 `)

func readProc(t *testing.T, pid int, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
