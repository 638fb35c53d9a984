package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/logins"
	"github.com/bot-bottle/bottle/internal/nearest"
	"github.com/bot-bottle/bottle/internal/nocore"
	"github.com/bot-bottle/bottle/internal/secret"
)

type loginFlags struct {
	variable     string
	remove, json bool
}

// loginCommand stores the logins of agents. It needs neither root nor containerd.
func (a *app) loginCommand() *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use:     "login [KIND]",
		Short:   "Store the login of a kind of agents, or list the stored ones",
		Long:    textLoginLong,
		Example: textLoginExample,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) > 1:
				return fmt.Errorf(textUnexpectedArg, args[1])
			case len(args) == 0 && (f.remove || f.variable != ""):
				return withHint(errors.New(textNoKind), hintKinds, strings.Join(agents.Names(), ", "))
			case len(args) == 1 && f.json:
				return errors.New(textLoginJSON)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			nocore.Disable()
			c := caller.Current()
			if len(args) == 0 {
				return a.listLogins(c, f.json)
			}
			k, err := kindNamed(args[0])
			if err != nil {
				return err
			}
			if f.remove {
				return a.removeLogin(c, k)
			}
			return a.storeLogin(c, k, f.variable)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&f.variable, "variable", "", "the variable that is stored (default: the kind's first)")
	fs.BoolVar(&f.remove, "remove", false, "remove the stored login")
	fs.BoolVar(&f.json, "json", false, "without KIND: print a list of objects as JSON")
	cmd.MarkFlagsMutuallyExclusive("variable", "remove")
	return cmd
}

func kindNamed(name string) (*agents.Kind, error) {
	if k, ok := agents.Lookup(name); ok {
		return k, nil
	}
	fix := fmt.Sprintf(hintKinds, strings.Join(agents.Names(), ", "))
	if near := nearest.Of(name, agents.Names()); near != "" {
		fix = fmt.Sprintf("did you mean %q? %s", near, fix)
	}
	return nil, withHint(fmt.Errorf(textUnknownKind, name), "%s", fix)
}

// storeLogin asks for a login without echo, or reads standard input if that is not a
// terminal, and stores it.
func (a *app) storeLogin(c caller.Caller, k *agents.Kind, variable string) error {
	login := k.Logins[0]
	if variable != "" {
		var ok bool
		if login, ok = k.Login(variable); !ok {
			return withHint(fmt.Errorf(textUnknownLogin, k.Title, variable), hintLogins, strings.Join(k.Variables(), ", "))
		}
	}
	value, err := a.readLogin(k, login)
	if err != nil {
		return err
	}
	if err := logins.Write(c, k.Name, login.Variable, value); err != nil {
		return err
	}
	a.note(textLoginStored, login.Variable, visible(logins.Path(c, k.Name)))
	return nil
}

func (a *app) readLogin(k *agents.Kind, login agents.Login) (secret.Value, error) {
	if a.inputIsTerminal() {
		a.note(textLoginGet, k.Title, login.Get)
		line, err := a.readSecret(login.Variable)
		if err != nil {
			return secret.Value{}, err
		}
		return logins.Clean([]byte(line))
	}
	text, err := a.interruptibly(0, func() (string, error) {
		data, err := io.ReadAll(io.LimitReader(a.stdin, logins.MaxValue+2))
		return string(data), err
	})
	if err != nil {
		return secret.Value{}, err
	}
	return logins.Clean([]byte(text))
}

func (a *app) removeLogin(c caller.Caller, k *agents.Kind) error {
	removed, err := logins.Remove(c, k.Name)
	if err != nil {
		return err
	}
	if removed {
		a.note(textLoginRemoved, k.Title)
	} else {
		a.note(textLoginNone, k.Title)
	}
	return nil
}

// loginRow is a kind and its stored login in the list.
type loginRow struct {
	Kind      string   `json:"kind"`
	Title     string   `json:"title"`
	Variables []string `json:"variables"`        // that log it in
	Stored    string   `json:"stored,omitempty"` // the one that is stored
	Error     string   `json:"error,omitempty"`  // why the stored one cannot be used
}

func (a *app) listLogins(c caller.Caller, asJSON bool) error {
	rows := []loginRow{}
	for _, name := range agents.Names() {
		k := agents.Get(name)
		row := loginRow{Kind: name, Title: k.Title, Variables: k.Variables()}
		switch l, err := logins.Read(c, name); {
		case err != nil:
			row.Error = err.Error()
		case l != nil && slices.Contains(row.Variables, l.Variable):
			row.Stored = l.Variable
		case l != nil:
			row.Error = fmt.Sprintf(textUnknownLogin, k.Title, l.Variable)
		}
		rows = append(rows, row)
	}
	if asJSON {
		return a.printJSON(rows)
	}
	return printLogins(a.stdout, rows)
}
