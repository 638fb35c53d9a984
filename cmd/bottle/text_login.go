package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

const (
	textLoginLong = `Store the key or token with which agents of a kind log in: it is asked for without
echo, or read from standard input if that is not a terminal. bottle run passes it to
agents of the kind that get no other login. The file belongs to you and has mode 0600:
~/.config/bottle/logins/KIND. Without KIND, list the kinds and what is stored.`
	textLoginExample = `  bottle login claude
  pass show openai | bottle login codex
  bottle login opencode --variable ANTHROPIC_API_KEY
  bottle login claude --remove`
	textNoKind       = "missing kind of agents"
	textUnknownKind  = "unknown kind %q"
	hintKinds        = "known kinds: %s"
	textUnknownLogin = "%s has no login %s"
	hintLogins       = "known logins: %s"
	textLoginJSON    = "unexpected --json with a kind"
	textLoginGet     = "%s: %s."
	textLoginStored  = "Stored %s in %s."
	textLoginRemoved = "Removed the stored login of %s."
	textLoginNone    = "No login of %s is stored."
)

func printLogins(w io.Writer, rows []loginRow) error {
	t := tabwriter.NewWriter(wrapped(w), 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "KIND\tSTORED\tACCEPTED")
	for _, r := range rows {
		stored := r.Stored
		switch {
		case r.Error != "":
			stored = "error: " + visible(r.Error)
		case stored == "":
			stored = "-"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", r.Kind, stored, strings.Join(r.Variables, ", "))
	}
	return t.Flush()
}
