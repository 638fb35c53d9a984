package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/internal/names"
)

func (a *app) fetchCommand() *cobra.Command {
	var size sizeFlag
	var branch string
	cmd := &cobra.Command{
		Use:     "fetch NAME",
		Short:   "Bring an agent's commits to a branch of your repository",
		Long:    textFetchLong,
		Example: textFetchExample,
		Args:    oneBottle("fetch"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withBottle(args[0], func(e *bottle.Engine, name string) error {
				return a.fetchWork(e, name, branch, a.workOptions(size))
			})
		},
	}
	cmd.Flags().StringVar(&branch, "branch", "", "name of the branch (default bottle/NAME)")
	size.register(cmd)
	return cmd
}

// fetchWork fetches an agent's work and reports what was fetched.
func (a *app) fetchWork(e *bottle.Engine, name, branch string, o agentwork.Options) error {
	if branch == "" {
		branch = "bottle/" + names.Short(name)
	}
	done := a.busy(textBusyFetch, shownName(name))
	list, err := e.Work().Fetch(a.ctx, name, branch, o)
	done()
	return a.fetched(list, err)
}

// fetched reports what was fetched.
func (a *app) fetched(list []agentwork.Fetched, err error) error {
	for _, f := range list {
		a.note("%s", fetchedText(f))
	}
	if err != nil {
		return err
	}
	if len(list) == 0 {
		a.note(textNothingFetched)
	}
	return nil
}

func fetchedText(f agentwork.Fetched) string {
	where := ""
	if f.Repo != "." {
		where = " in " + f.Repo
	}
	switch {
	case f.Commits == 0 && !f.Uncommitted:
		return fmt.Sprintf(textFetchedNone, f.Branch, where)
	case f.Uncommitted:
		return fmt.Sprintf(textFetchedUncommitted, f.Branch, where, count(f.Commits, "commit"))
	}
	return fmt.Sprintf(textFetched, f.Branch, where, count(f.Commits, "commit"))
}

// oneBottle accepts the name of one bottle.
func oneBottle(command string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch len(args) {
		case 0:
			return withHint(errors.New(textRmArgs), "bottle %s NAME", command)
		case 1:
			return nil
		}
		return fmt.Errorf(textUnexpectedArg, args[1])
	}
}

// withBottle calls fn with a bottle that exists, or whose work was kept.
func (a *app) withBottle(arg string, fn func(*bottle.Engine, string) error) error {
	return a.withEngine(func(e *bottle.Engine) error {
		name, err := a.resolve(e, arg)
		if err != nil {
			return err
		}
		return fn(e, name)
	})
}

// resolve returns the complete name of a bottle.
func (a *app) resolve(e *bottle.Engine, arg string) (string, error) {
	defer a.busy(textBusyResolve, visible(arg))()
	return e.Resolve(a.ctx, arg)
}
