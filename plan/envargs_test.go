package plan

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/secret/secrettest"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/provision"
)

// given returns the variables that ParseEnvFile reads, one per line; a forwarded variable
// has no =.
func given(t *testing.T, text string) string {
	t.Helper()
	args, err := ParseEnvFile(provision.SourceEnvFile, "work.env", []byte(text))
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	var out []string
	for _, a := range args {
		if a.Value == nil {
			out = append(out, a.Name)
			continue
		}
		out = append(out, a.Name+"="+a.Value.Reveal())
	}
	return strings.Join(out, "|")
}

func TestParseEnvFile(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "",
		"A=1\nB=2":                        "A=1|B=2",
		"A=1\r\nB=2\r\n":                  "A=1|B=2",
		"\ufeffA=1\n\n# note\n  #n\n\tB=": "A=1|B=",
		// Docker's values are literal.
		"A='x y' \"z\"\\n # no comment \nB==a=b=": "A='x y' \"z\"\\n # no comment |B==a=b=",
		"A=ü😀\nNAME\n":                            "A=ü😀|NAME",
		// Each entry ends with a NUL byte; all other bytes belong to the value.
		"A=l1\nl2\r\n\x00":              "A=l1\nl2\r\n",
		"A= # \"q\"=\xff\x01\x00B=\x00": "A= # \"q\"=\xff\x01|B=",
		"NAME\x00A=1":                   "NAME|A=1",
		"A=1\x00\x00B=2\x00":            "A=1|B=2",
	} {
		if got := given(t, text); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestParseEnvFileErrors(t *testing.T) {
	for text, want := range map[string]string{
		"A=1\n2B=hunter2":           "env file work.env, line 2: invalid variable name before =",
		"A = hunter2":               "line 1: invalid variable name before =",
		"hunter2 without a name":    "line 1: invalid variable name before =",
		"=hunter2":                  "line 1: invalid variable name before =",
		"\n\nhttps_proxy=hunter2":   "line 3: https_proxy is reserved for the address of the egress proxy",
		"A=\xffhunter2":             "line 1: invalid UTF-8",
		"A=1\x00B C=hunter2\x00":    "entry 2: invalid variable name before =",
		"export A=hunter2":          "line 1: invalid variable name before =",
		"A=-----BEGIN\nhunter2\n--": "line 3: invalid variable name before =", // hunter2 is a name that could be forwarded
	} {
		_, err := ParseEnvFile(provision.SourceEnvFile, "work.env", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || secrets.MatchString(err.Error()) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestEnvFilesInAPlan(t *testing.T) {
	s := newScene(t, "env: {A: lit, B: , C: {prompt: q}}", "")
	file, err := ParseEnvFile(provision.SourceEnvFile, "/w.env", []byte("A=file\nB=file\nC=file\nD=file\nE\n"))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := ParseEnvFile(provision.SourceDescriptor, "3", []byte("C=fd\nhunt\x00"))
	if err != nil {
		t.Fatal(err)
	}
	s.spec.EnvFiles, s.spec.Env, s.env["E"] = slices.Concat(file, fd), []string{"D=flag"}, "hunter2"
	p := s.good()
	checkVariable(t, p, "A", provision.SourceEnvFile, "/w.env", "file")
	checkVariable(t, p, "B", provision.SourceEnvFile, "/w.env", "file")
	checkVariable(t, p, "C", provision.SourceDescriptor, "3", "fd\nhunt")
	checkVariable(t, p, "D", provision.SourceArgument, "", "flag")
	checkVariable(t, p, "E", manifest.SourceForwarded, "E", "hunter2")
	delete(s.env, "E")
	s.bad("cannot forward E: not set in the environment")
}

func TestEnvTokenFlag(t *testing.T) {
	yes, no := true, false
	s := newScene(t, "", "")
	s.spec.ForwardToken = &yes
	s.bad("cannot forward " + callerToken + ": not set in the environment")
	s.env[callerToken] = "hunter2"
	checkVariable(t, s.good(), agentToken, manifest.SourceForwarded, callerToken, "hunter2")
	s.spec.ForwardToken = &no
	if p := s.good(); len(p.Env) != 0 {
		t.Errorf("got %v", p.Env)
	}
}

func TestResolveEnv(t *testing.T) {
	c := caller.Caller{Getenv: func(name string) (string, bool) { return "hunter2", name == "A" || name == callerToken }}
	vars, err := ResolveEnv(c, nil, []string{"A", "B=x"}, nil)
	if err != nil || len(vars) != 2 || vars[0].Secret.Reveal() != "hunter2" {
		t.Errorf("got %v, %v", vars, err)
	}
	_, err = ResolveEnv(c, nil, []string{"NONE", "1=hunter2", "no_proxy=hunter2"}, nil)
	if n := len(hint.Split(err)); n != 3 || secrets.MatchString(err.Error()) {
		t.Errorf("got %v", err)
	}
}

// TestEnvPipes: a pipe is not read by Prepare. Its variables take their place among
// the others when it is, and what it may give is not missing before.
func TestEnvPipes(t *testing.T) {
	s := newScene(t, `env: {A: {from: NONE}, B: manifest, C: , D: {file: none}}`, "")
	if _, err := s.prepare(); err == nil || !strings.Contains(err.Error(), "cannot forward NONE, C: not set in the environment") || !strings.Contains(err.Error(), "missing file") {
		t.Errorf("control: %v", err)
	}
	before := []EnvArg{{Name: "B", Value: secretPointer("before")}, {Name: "E", Value: secretPointer("before")}}
	after := []EnvArg{{Name: "E", Value: secretPointer("after")}}
	s.spec.EnvFiles = slices.Concat(before, []EnvArg{PipeArg(provision.SourceEnvFile, "/dev/fd/63")}, after)
	s.spec.Env = []string{"F=flag"}
	p := s.good()
	if !slices.Equal(p.EnvPipes, []string{"/dev/fd/63"}) || len(p.Env) != 3 {
		t.Errorf("pipes %q, variables %v", p.EnvPipes, p.Env)
	}
	secrettest.CheckHidden(t, "plan", p, "after")
	read := func(path string) ([]EnvArg, error) {
		return ParseEnvFile(provision.SourceEnvFile, path, []byte("A=pipe\nB=pipe\nC=pipe\nD=pipe\nE=pipe\nF=pipe\n"))
	}
	if err := p.ReadPipes(read); err != nil || len(p.EnvPipes) > 0 || len(p.Env) != 6 {
		t.Fatalf("pipes %q, variables %v, error %v", p.EnvPipes, p.Env, err)
	}
	for name, value := range map[string]string{"A": "pipe", "B": "pipe", "C": "pipe", "D": "pipe", "E": "after", "F": "flag"} {
		if got := variables(p)[name].Secret.Reveal(); got != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	err := s.good().ReadPipes(func(string) ([]EnvArg, error) { return nil, nil })
	if err == nil || !strings.Contains(err.Error(), "cannot forward NONE, C: not set in the environment") {
		t.Errorf("from an empty pipe: %v", err)
	}
	failed := errors.New("failed")
	if err := s.good().ReadPipes(func(string) ([]EnvArg, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("from a pipe that cannot be read: %v", err)
	}
}

func FuzzParseEnvFile(f *testing.F) {
	for _, s := range []string{"", "A=1\nB", "A=1\x00B=\n\x00", "\ufeff# x\r\n A=\xff", "=\n\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		args, err := ParseEnvFile(provision.SourceEnvFile, "f", data)
		for _, a := range args {
			if !manifest.ValidEnvName(a.Name) || a.Value != nil && strings.Contains(a.Value.Reveal(), "\x00") {
				t.Errorf("%q: invalid name %q", data, a.Name)
			}
		}
		for _, e := range hint.Split(err) {
			if strings.ContainsAny(e.Error(), "\n\x00\x1b") {
				t.Errorf("%q", e)
			}
		}
	})
}
