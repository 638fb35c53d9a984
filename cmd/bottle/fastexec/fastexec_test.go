package fastexec

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hostconfig"
	"github.com/bot-bottle/bottle/internal/hosttask"
)

// TestParse: arguments are read as by package main, or left to it.
func TestParse(t *testing.T) {
	for args, want := range map[string]string{
		"b true":                      "b||true",
		"-T b true":                   "b||true",
		"-i --no-tty b sh -c x":       "b||sh -c x",
		"-w /tmp b -- ls -l":          "b|/tmp|ls -l",
		"--workdir /a b ls":           "b|/a|ls",
		"b -- -x":                     "b||-x",
		"b ls -- x":                   "b||ls -- x",
		"":                            "",
		"b":                           "",
		"b --":                        "",
		"b -x":                        "",
		"-- b true":                   "",
		"-t b true":                   "",
		"-Ti b true":                  "",
		"-e A=b b true":               "",
		"-u 0 b true":                 "",
		"-w tmp b true":               "",
		"-w":                          "",
		"--workdir=/tmp b true":       "",
		"--env-file /f b true":        "",
		"--interactive=false b true":  "",
		"--help":                      "",
		"--namespace other -T b true": "",
		"-T --debug b true":           "",
	} {
		r, ok := parse(strings.Fields(args))
		got := r.name + "|" + r.dir + "|" + strings.Join(r.command, " ")
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %q, %v; want %q", args, got, ok, want)
		}
	}
}

func TestPlainNamespace(t *testing.T) {
	for namespace, want := range map[string]bool{
		"bottle": true, "lab-1": true, "": false, "../x": false, "a.b": false, "a--b": false, "-a": false, "detach": false, "A": false,
	} {
		if isPlain(namespace) != want {
			t.Errorf("%q: %v", namespace, !want)
		}
	}
}

// TestFind: a bottle is found only if package main has nothing to check, report or start.
func TestFind(t *testing.T) {
	const namespace, name = "test-1", "claude-bottle-x"
	self, ok := hosttask.ProcessOf(os.Getpid())
	if !ok {
		t.Fatal("this process was not found")
	}
	for what, c := range map[string]struct {
		change func(t *testing.T, run, dir, state string) error
		who    caller.Caller
		name   string
		want   bool
	}{
		"running":        {name: name, want: true},
		"no such bottle": {name: "claude-bottle-y"},
		"a path":         {name: "../" + namespace + "/" + name},
		"without prefix": {name: "x", want: true},
		"another bottle has exactly that name": {name: "x", change: func(_ *testing.T, _, dir, _ string) error {
			return os.Mkdir(filepath.Join(filepath.Dir(dir), "x"), 0o700)
		}},
		"something of exactly that name was left": {name: "x", change: func(_ *testing.T, _, _, state string) error {
			return os.Mkdir(filepath.Join(filepath.Dir(state), "x"), 0o700)
		}},
		"work of exactly that name was left": {name: "x", change: func(_ *testing.T, _, _, state string) error {
			return os.MkdirAll(filepath.Join(filepath.Dir(filepath.Dir(state)), hostconfig.WorkspacesDir, namespace, "x"), 0o700)
		}},
		"being launched": {name: name, change: func(_ *testing.T, _, dir, _ string) error {
			return os.Truncate(filepath.Join(dir, hosttask.LaunchFile), 0)
		}},
		"suspended": {name: name, change: func(_ *testing.T, _, dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, hosttask.SuspendedFile), nil, 0o600)
		}},
		"prepared": {name: name, change: func(_ *testing.T, _, _, state string) error {
			return os.WriteFile(filepath.Join(state, hosttask.PreparedFile), nil, 0o600)
		}},
		"of another version": {name: name, change: func(_ *testing.T, _, dir, _ string) error {
			return os.Remove(filepath.Join(dir, "limits.json"))
		}},
		"its proxy has ended": {name: name, change: func(_ *testing.T, _, dir, _ string) error {
			return os.WriteFile(filepath.Join(dir, "proxy", "runc", namespace, name+".proxy", "state.json"),
				fmt.Appendf(nil, `{"init_process_pid": %d, "init_process_start": %d}`, os.Getpid(), self.Start-1), 0o600)
		}},
		"what is in front of its proxy does not run": {name: name, change: func(_ *testing.T, _, dir, _ string) error {
			return os.Mkdir(filepath.Join(dir, "front"), 0o700)
		}},
		"containerd does not run": {name: name, change: func(t *testing.T, run, _, _ string) error {
			t.Setenv(hostconfig.Address, filepath.Join(run, "none.sock"))
			return nil
		}},
		"the user has a configuration": {name: name, change: func(t *testing.T, run, _, _ string) error {
			file := filepath.Join(run, hostconfig.UserFile)
			return errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600))
		}},
		"a user of sudo chooses settings": {name: name, who: caller.Caller{UID: 1000}},
	} {
		t.Run(what, func(t *testing.T) {
			run := t.TempDir()
			dir, state := filepath.Join(run, "run", namespace, name), filepath.Join(run, "state", namespace, name)
			task := filepath.Join(dir, "proxy", "runc", namespace, name+".proxy")
			socket := filepath.Join(run, "c.sock")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			err = errors.Join(os.MkdirAll(task, 0o700), os.MkdirAll(state, 0o700), hosttask.Limits{}.Record(dir),
				os.WriteFile(filepath.Join(dir, hosttask.LaunchFile), []byte("1"), 0o600),
				os.WriteFile(filepath.Join(task, "state.json"), fmt.Appendf(nil, `{"init_process_pid": %d, "init_process_start": %d}`, os.Getpid(), self.Start), 0o600))
			if err != nil {
				t.Fatal(err)
			}
			for variable, value := range map[string]string{
				hostconfig.Namespace: namespace, hostconfig.Address: socket,
				hostconfig.RunDir: filepath.Join(run, "run"), hostconfig.StateDir: filepath.Join(run, "state"),
			} {
				t.Setenv(variable, value)
			}
			if c.change != nil {
				if err := c.change(t, run, dir, state); err != nil {
					t.Fatal(err)
				}
			}
			c.who.Home = run
			if b, ok := find(c.who, c.name); ok != c.want || ok && b.dir != dir {
				t.Errorf("%+v, %v", b, ok)
			}
		})
	}
}
