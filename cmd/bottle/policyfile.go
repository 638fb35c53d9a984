package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/policy"
)

// policyFileCommand groups the commands for the administrator's policy. They need
// neither root nor containerd.
func (a *app) policyFileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Check and show the administrator's policy",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.policyCheckCommand(), a.policyShowCommand(), a.policySchemaCommand())
	return cmd
}

func (a *app) policyCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "check [FILE]",
		Short:   "Validate the administrator's policy and report all errors",
		Long:    textPolicyCheckLong,
		Example: textPolicyCheckExample,
		Args:    atMostOneArg,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				return a.checkPolicyFile(args[0])
			}
			return a.checkSystem()
		},
	}
}

func atMostOneArg(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf(textUnexpectedArg, args[1])
	}
	return nil
}

// maxPolicy bounds the size of a policy that is checked, in bytes.
const maxPolicy = 1 << 20

// checkPolicyFile checks a file before it is installed. It reads it with the caller's
// rights, and its owner does not matter.
func (a *app) checkPolicyFile(path string) error {
	c := caller.Current()
	data, err := c.ReadRegular(c.Abs(path), maxPolicy+1)
	if err == nil && len(data) > maxPolicy {
		err = errors.New(textPolicyTooLarge)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if filepath.Base(path) == policy.ConfigFile {
		_, err = policy.ParseConfig(path, data)
	} else {
		_, err = policy.Parse(path, data)
	}
	if err != nil {
		return err
	}
	a.note(textPolicyValid, visible(path))
	return nil
}

// checkSystem checks the files that are in force.
func (a *app) checkSystem() error {
	p, c, err := a.readSystem()
	if err != nil {
		return err
	}
	for _, path := range []string{p.Path, c.Path} {
		if path != "" {
			a.note(textPolicyValid, path)
		}
	}
	if p.Path == "" {
		a.note(textPolicyNone, filepath.Join(a.systemDir(), policy.File))
	}
	return nil
}

func (a *app) systemDir() string {
	if a.policyDir != "" {
		return a.policyDir
	}
	return policy.Dir
}

func (a *app) readSystem() (*policy.Policy, *policy.Config, error) {
	p, perr := policy.Load(a.systemDir())
	c, cerr := policy.LoadConfig(a.systemDir())
	return p, c, errors.Join(perr, cerr)
}

func (a *app) policyShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show what the administrator's policy allows to users of sudo",
		Long:  textPolicyShowLong,
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			p, c, err := a.readSystem()
			if errors.Is(err, os.ErrPermission) {
				return withHint(err, hintPolicyUnreadable)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(struct {
					Policy *policy.Policy `json:"policy"`
					Config *policy.Config `json:"config"`
				}{p, c})
			}
			return printPolicy(a.stdout, p, c, a.systemDir())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) policySchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the policy's JSON Schema, for editors",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := a.stdout.Write(policy.Schema)
			return err
		},
	}
}
