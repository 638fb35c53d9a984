package guest

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSetTerminalTERM(t *testing.T) {
	const unknown = "bottle-test" // in no image's terminfo
	for name, c := range map[string]struct {
		term string
		file string // made in the test's directory
		env  string // names the test's directory
		want string
	}{
		"unknown":                   {term: unknown, want: fallbackTerm},
		"TERMINFO":                  {term: unknown, file: "b/" + unknown, env: "TERMINFO", want: unknown},
		"TERMINFO, hexadecimal":     {term: unknown, file: "62/" + unknown, env: "TERMINFO", want: unknown},
		"TERMINFO_DIRS":             {term: unknown, file: "b/" + unknown, env: "TERMINFO_DIRS", want: unknown},
		"home":                      {term: unknown, file: ".terminfo/b/" + unknown, env: "HOME", want: unknown},
		"another terminal":          {term: unknown, file: "b/bottle-other", env: "TERMINFO", want: fallbackTerm},
		"a directory":               {term: unknown, file: "b/" + unknown + "/file", env: "TERMINFO", want: fallbackTerm},
		"a path":                    {term: "b/" + unknown, file: "b/b/" + unknown, env: "TERMINFO", want: fallbackTerm},
		"not in these":              {term: unknown, file: unknown, env: "TERMINFO", want: fallbackTerm},
		"dumb":                      {term: "dumb", want: "dumb"},
		"no terminal":               {},
		"not a character":           {term: "\xff", want: fallbackTerm},
		"fallback without terminfo": {term: fallbackTerm, want: fallbackTerm},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, name := range []string{"TERMINFO", "TERMINFO_DIRS", "HOME"} {
				t.Setenv(name, "")
			}
			if c.env != "" {
				t.Setenv(c.env, dir)
			}
			if c.file != "" {
				file := filepath.Join(dir, c.file)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("TERM", c.term)
			env := newEnviron(os.Environ())
			setTerminal(env)
			if got := env.get("TERM"); got != c.want {
				t.Errorf("TERM %q becomes %q, want %q", c.term, got, c.want)
			}
		})
	}
}

func TestSetTerminalLocale(t *testing.T) {
	for name, c := range map[string]struct{ name, value, want string }{
		"none":     {"LANG", "", "C.UTF-8"},
		"LANG":     {"LANG", "de_DE.UTF-8", "de_DE.UTF-8"},
		"C":        {"LANG", "C", "C"},
		"LC_ALL":   {"LC_ALL", "POSIX", ""},
		"LC_CTYPE": {"LC_CTYPE", "C.UTF-8", ""},
		"LC_TIME":  {"LC_TIME", "C", "C.UTF-8"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, name := range []string{"LC_ALL", "LC_CTYPE", "LC_TIME", "LANG"} {
				t.Setenv(name, "")
			}
			t.Setenv(c.name, c.value)
			env := newEnviron(os.Environ())
			setTerminal(env)
			if got := env.get("LANG"); got != c.want {
				t.Errorf("LANG is %q, want %q", got, c.want)
			}
		})
	}
}
