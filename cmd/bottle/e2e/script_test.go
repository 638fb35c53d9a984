package e2e

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/bot-bottle/bottle/internal/cliscript"
	"github.com/bot-bottle/bottle/internal/labtest"
	"github.com/bot-bottle/bottle/internal/leakcheck"
)

// TestScripts runs the sessions that testdata/script describes, each in a
// directory with the manifest of the other tests.
func TestScripts(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("found %q, %v", scripts, err)
	}
	path := filepath.Dir(labtest.Program(t)) + ":" + os.Getenv("PATH")
	for _, script := range scripts {
		name := strings.TrimSuffix(filepath.Base(script), ".txtar")
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			sessions := scriptSessions{}
			testscript.Run(t, testscript.Params{
				Files:               []string{script},
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
				Setup: func(env *testscript.Env) error {
					for _, kv := range os.Environ() {
						name, value, _ := strings.Cut(kv, "=")
						env.Setenv(name, value)
					}
					env.Setenv("HOME", env.WorkDir)
					env.Setenv("PATH", path)
					return os.WriteFile(filepath.Join(env.WorkDir, "bottle.yaml"), []byte(manifest), 0o600)
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exit": cliscript.Exit, "start": sessions.start, "end": sessions.end, "crash": sessions.crash,
				},
			})
		})
	}
}

// scriptSessions are the bottles that a script has started, by name.
type scriptSessions map[string]*scriptSession

type scriptSession struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

// start is the script command "start NAME": it runs the agent wait in a bottle of
// this name and returns when the agent has said that it is ready. The session's
// standard error goes to the file NAME.log.
func (s scriptSessions) start(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: start NAME")
	}
	log, err := os.Create(ts.MkAbs(args[0] + ".log"))
	ts.Check(err)
	ts.Defer(func() { _ = log.Close() })
	cmd := exec.Command("bottle", "run", "wait", "--proxy", "builtin", "--yes", "--trust", "--name", "claude-bottle-"+args[0])
	cmd.Path, err = exec.LookPath(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "bottle"))
	ts.Check(err)
	cmd.Dir, cmd.Env, cmd.Stderr, cmd.Err = ts.MkAbs("."), append(os.Environ(), "HOME="+ts.Getenv("HOME")), log, nil
	stdin, err := cmd.StdinPipe()
	ts.Check(err)
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	session := &scriptSession{cmd, stdin, bufio.NewReader(out)}
	s[args[0]] = session
	ts.Defer(func() { _ = session.wait() })
	if line, err := session.out.ReadString('\n'); line != "ready\n" {
		ts.Fatalf("the agent said %q, %v:\n%s", line, err, ts.ReadFile(args[0]+".log"))
	}
}

// wait ends the session's input and waits for the end of bottle run.
func (s *scriptSession) wait() error {
	_ = s.stdin.Close()
	_, _ = io.Copy(io.Discard, s.out)
	return s.cmd.Wait()
}

// end is the script command "end NAME": it ends a session, which must succeed.
func (s scriptSessions) end(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(s.named(ts, neg, args).wait())
}

// crash is the script command "crash NAME": it kills bottle run itself.
func (s scriptSessions) crash(ts *testscript.TestScript, neg bool, args []string) {
	session := s.named(ts, neg, args)
	ts.Check(session.cmd.Process.Signal(syscall.SIGKILL))
	if err := session.wait(); err == nil {
		ts.Fatalf("bottle run ended before it was killed")
	}
}

func (s scriptSessions) named(ts *testscript.TestScript, neg bool, args []string) *scriptSession {
	if neg || len(args) != 1 || s[args[0]] == nil {
		ts.Fatalf("expected the name of a session that was started")
	}
	return s[args[0]]
}
