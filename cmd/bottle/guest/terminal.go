package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// fallbackTerm is used when the image does not know the caller's terminal. Terminals
// that have a terminfo entry of their own, such as kitty, foot and alacritty,
// understand its sequences.
const fallbackTerm = "xterm-256color"

// setTerminal replaces a TERM that the image has no terminfo entry for, and sets a
// locale if the image sets none: without one, programs take text for ASCII. The
// locale C.UTF-8 is part of musl, and of glibc's packages from 2.35 on.
func setTerminal(env *environ) {
	// set fails for invalid names and values only.
	if term := env.get("TERM"); term != "" && !hasTerminfo(term, terminfoDirs(env)) {
		_ = env.set("TERM", fallbackTerm)
	}
	if env.get("LC_ALL") == "" && env.get("LC_CTYPE") == "" && env.get("LANG") == "" {
		_ = env.set("LANG", "C.UTF-8")
	}
}

// terminfoDirs lists the directories that ncurses searches (terminfo(5)), with the
// places that distributions configure.
func terminfoDirs(env *environ) []string {
	dirs := []string{env.get("TERMINFO")}
	if home := env.get("HOME"); home != "" {
		dirs = append(dirs, filepath.Join(home, ".terminfo"))
	}
	dirs = append(dirs, filepath.SplitList(env.get("TERMINFO_DIRS"))...)
	return append(dirs, "/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo", "/usr/local/share/terminfo", "/usr/share/misc/terminfo")
}

// hasTerminfo reports whether a directory has an entry for the terminal, under its
// first letter or that letter's hexadecimal code. A dumb terminal needs no entry.
func hasTerminfo(term string, dirs []string) bool {
	if term == "dumb" {
		return true
	}
	if strings.ContainsRune(term, '/') {
		return false
	}
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		for _, letter := range []string{term[:1], fmt.Sprintf("%x", term[0])} {
			if fi, err := os.Stat(filepath.Join(dir, letter, term)); err == nil && fi.Mode().IsRegular() {
				return true
			}
		}
	}
	return false
}
