package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// environment returns the caller's environment with the changes listed in the
// lab's env file.
func environment(labDir string, caller []string) ([]string, error) {
	file, err := os.ReadFile(filepath.Join(labDir, "env"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errNotUp
	}
	if err != nil {
		return nil, fmt.Errorf("read the lab's environment: %w", err)
	}
	env := slices.Clone(caller)
	for line := range strings.Lines(string(file)) {
		line = strings.TrimSuffix(line, "\n")
		key, value, _ := strings.Cut(line, "=")
		switch {
		case line == "":
		case key == "PATH+":
			env = set(env, "PATH", prepend(value, lookup(env, "PATH"), filepath.Join(labDir, "bin")))
		case strings.HasPrefix(line, "-"):
			env = unset(env, line[1:])
		default:
			env = set(env, key, value)
		}
	}
	return env, nil
}

// prepend joins the search paths first and path without duplicates and without
// the directory drop. drop holds the lab's wrappers, which would enter the lab
// again if they were found inside it.
func prepend(first, path, drop string) string {
	dirs := filepath.SplitList(first)
	for _, dir := range filepath.SplitList(path) {
		if dir != drop && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return strings.Join(dirs, string(filepath.ListSeparator))
}

func lookup(env []string, key string) string {
	for _, kv := range env {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			return v
		}
	}
	return ""
}

func unset(env []string, key string) []string {
	return slices.DeleteFunc(env, func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return k == key
	})
}

func set(env []string, key, value string) []string {
	return append(unset(env, key), key+"="+value)
}
