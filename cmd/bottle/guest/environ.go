package guest

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// environ is the environment of a session that is being started. PID 1 starts several at
// once, so none of them is the program's own.
type environ struct {
	names  []string // in order
	values map[string]string
}

// newEnviron returns an environment with entries NAME=VALUE, of which the last of a name
// counts.
func newEnviron(list []string) *environ {
	e := &environ{values: map[string]string{}}
	for _, kv := range list {
		if name, value, ok := strings.Cut(kv, "="); ok {
			_ = e.set(name, value) // an invalid entry is left out, as by execve's callers
		}
	}
	return e
}

func (e *environ) get(name string) string { return e.values[name] }

func (e *environ) set(name, value string) error {
	if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
		return fmt.Errorf("set %s: invalid argument", name)
	}
	if _, known := e.values[name]; !known {
		e.names = append(e.names, name)
	}
	e.values[name] = value
	return nil
}

// list returns the environment as for execve(2).
func (e *environ) list() []string {
	out := make([]string, len(e.names))
	for i, name := range e.names {
		out[i] = name + "=" + e.values[name]
	}
	return out
}

// load sets the variables in a file of NUL-terminated NAME=VALUE entries.
func (e *environ) load(file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read environment file: %w", err)
	}
	for _, kv := range bytes.Split(data, []byte{0}) {
		name, value, ok := bytes.Cut(kv, []byte{'='})
		if !ok {
			continue
		}
		if err := e.set(string(name), string(value)); err != nil {
			return err
		}
	}
	return nil
}
