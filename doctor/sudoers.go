package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// sudoers checks the lines that let users run bottle.
func (d *checks) sudoers(file, program string) {
	const check = "sudoers"
	lines, err := readSudoers(file, 0)
	if err != nil {
		d.fail(check, err, "visudo -c")
		return
	}
	rules, names := 0, aliases(lines, program)
	for _, l := range lines {
		problem, fix, rule := checkSudoers(l.text, program, names)
		if rule {
			rules++
		}
		if problem != "" {
			d.report(check, LevelFail, fix, "%s: %s", l.file, problem)
			return
		}
	}
	if rules == 0 {
		d.report(check, LevelWarn, "%agents ALL=(root) NOPASSWD: "+program, "no line lets anybody run %s; what directory services say was not checked", program)
		return
	}
	d.report(check, LevelOK, "", "users run %s without their environment (lines: %d)", program, rules)
}

// sudoersLine is a logical line: without comments, with its continuations.
type sudoersLine struct{ file, text string }

// maxIncludes bounds the depth of includes, as in sudo.
const maxIncludes = 128

// readSudoers reads a file of sudoers(5) and those that it includes.
func readSudoers(path string, depth int) ([]sudoersLine, error) {
	if depth > maxIncludes {
		return nil, fmt.Errorf("too many levels of includes in %s", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var out []sudoersLine
	for line := range strings.Lines(strings.ReplaceAll(string(data), "\\\n", " ")) {
		line = strings.TrimSpace(line)
		words := strings.Fields(line)
		if len(words) == 2 && strings.HasPrefix(words[0], "#include") {
			words[0] = "@" + words[0][1:] // the older form, which looks like a comment
		}
		switch {
		case len(words) == 2 && words[0] == "@include":
			more, err := readSudoers(included(path, words[1]), depth+1)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		case len(words) == 2 && words[0] == "@includedir":
			more, err := readSudoersDir(included(path, words[1]), depth)
			if err != nil {
				return nil, err
			}
			out = append(out, more...)
		default:
			if text := withoutComment(line); text != "" {
				out = append(out, sudoersLine{path, text})
			}
		}
	}
	return out, nil
}

func readSudoersDir(dir string, depth int) (out []sudoersLine, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		// sudo skips these, for example backups of editors and packages.
		if e.IsDir() || strings.Contains(e.Name(), ".") || strings.HasSuffix(e.Name(), "~") {
			continue
		}
		more, err := readSudoers(filepath.Join(dir, e.Name()), depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

func included(from, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(from), path)
}

// withoutComment removes a comment. A '#' before a digit begins a user ID.
func withoutComment(line string) string {
	for i, r := range line {
		if r == '#' && (i+1 == len(line) || line[i+1] < '0' || line[i+1] > '9') {
			return strings.TrimSpace(line[:i])
		}
	}
	return line
}

// identity are the variables by which bottle recognises the users of sudo.
var identity = []string{"SUDO_UID", "SUDO_GID", "SUDO_USER", "SUDO_*", "*"}

// sudoersWords splits a line at what separates words of sudoers.
func sudoersWords(line string) []string {
	return strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t,=\"+:", r) })
}

// aliases returns the names of the lists of commands that include bottle.
func aliases(lines []sudoersLine, program string) (names []string) {
	for _, l := range lines {
		kind, rest, _ := strings.Cut(l.text, " ")
		if kind != "Cmnd_Alias" && kind != "Cmd_Alias" {
			continue
		}
		for one := range strings.SplitSeq(rest, ":") {
			name, commands, _ := strings.Cut(one, "=")
			if slices.ContainsFunc(sudoersWords(commands), func(w string) bool { return matchesProgram(w, program) }) {
				names = append(names, strings.TrimSpace(name))
			}
		}
	}
	return names
}

// checkSudoers checks a line. Rule reports that it lets somebody run bottle by its name,
// or by one of the names of lists that include it.
func checkSudoers(line, program string, names []string) (problem, fix string, rule bool) {
	words := sudoersWords(line)
	if strings.HasPrefix(line, "Defaults") {
		switch {
		case slices.Contains(words, "!env_reset"):
			return "env_reset is off: users choose root's environment, and who they are for bottle", "remove !env_reset", false
		case slices.Contains(words, "setenv"):
			return "setenv is on: users can set SUDO_UID, and are then another user for bottle", "remove setenv", false
		case strings.Contains(line, "env_keep") && slices.ContainsFunc(words, func(w string) bool { return slices.Contains(identity, w) }):
			return "env_keep keeps variables that identify users", "remove them from env_keep", false
		}
		return "", "", false
	}
	isAlias := strings.HasPrefix(line, "Cmnd_Alias") || strings.HasPrefix(line, "Cmd_Alias")
	for _, w := range words {
		byName := !isAlias && slices.Contains(names, w)
		if !byName && !matchesProgram(w, program) {
			continue
		}
		switch {
		case slices.Contains(words, "SETENV"):
			return "SETENV: users can set SUDO_UID, and are then another user for bottle", "remove SETENV", true
		case w != program && !byName:
			return fmt.Sprintf("%s also matches other programs than bottle", w), "name " + program, true
		}
		return "", "", !isAlias
	}
	return "", "", false
}

// matchesProgram reports whether a command of sudoers, a path with the wildcards of
// glob(7) or a directory, includes bottle.
func matchesProgram(command, program string) bool {
	if !strings.HasPrefix(command, "/") {
		return false // ALL is for administrators
	}
	if strings.HasSuffix(command, "/") {
		return filepath.Dir(program)+"/" == command
	}
	ok, err := filepath.Match(command, program)
	return err == nil && ok
}
