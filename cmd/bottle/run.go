package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/secret"
)

type runFlags struct {
	spec                            plan.Spec
	yes, dryRun, json, timings, tty bool
	noTTY                           bool
	env                             envFlags
	token                           bool
	trust                           bool
	approval                        *approval // of the manifest
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:     "run AGENT [flags] [-- ARGS...]",
		Short:   "Run an agent in a new bottle",
		Long:    textRunLong,
		Example: textRunExample,
		Args:    agentAndArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.spec.Agent, f.spec.Args = args[0], args[1:]
			f.spec.ManifestPath = a.manifest
			disableCoreDumps()
			defer catchBrokenPipes()()
			f.spec.Caller = caller.Current()
			f.spec.Env = f.env.env
			if cmd.Flags().Changed(flagToken) {
				f.spec.ForwardToken = &f.token
			}
			if err := a.loadManifest(&f); err != nil {
				return err
			}
			var err error
			if f.spec.EnvFiles, err = f.env.read(a, f.spec.Caller); err != nil {
				return err
			}
			if f.dryRun {
				return a.withHost(func(h plan.Host) error {
					_, err := a.preparePlan(h, f)
					return err
				})
			}
			return a.withEngine(func(e *bottle.Engine) error { return a.run(e, f) })
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&f.yes, "yes", "y", false, "start without confirmation")
	fs.BoolVar(&f.trust, "trust", false, "use a manifest that is not approved (see bottle trust), without approving it")
	fs.BoolVar(&f.spec.NoInput, "no-input", false, "fail instead of asking a question")
	fs.BoolVar(&f.dryRun, "dry-run", false, "show the plan and stop")
	fs.BoolVar(&f.json, "json", false, "print the plan as JSON on standard output")
	fs.StringVar(&f.spec.Name, "name", "", "name of the bottle (CLAUDE_BOTTLE_CONTAINER; default: claude-bottle-AGENT)")
	fs.BoolVar(&f.spec.Cwd, "cwd", false, "run on an image with a copy of the working directory")
	fs.StringVar(&f.spec.CwdTarget, "cwd-target", "", "where the copy is placed in the image (default "+plan.DefaultCwdTarget+")")
	fs.BoolVar(&f.spec.CwdForce, "cwd-force", false, "allow --cwd in a home directory or /")
	fs.StringVar(&f.spec.Pull, "pull", "", "when to pull the image: "+strings.Join(plan.PullPolicies, ", ")+" (default "+plan.PullMissing+")")
	fs.StringVar(&a.hostsDir, "hosts-dir", "", textHostsDir)
	fs.BoolVarP(&a.quiet, "quiet", "q", false, "do not show the progress of pulling, building and copying")
	fs.StringVar(&f.spec.Runtime, "runtime", "", "runsc (gVisor) or runc (default runsc)")
	fs.StringVar(&f.spec.Proxy, "proxy", "", "pipelock or builtin (default: the manifest's, or pipelock)")
	fs.BoolVar(&f.spec.Learn, "learn", false, "block nothing public, and print a patch for the manifest at the end")
	f.env.register(fs)
	fs.BoolVar(&f.token, flagToken, false, "forward CLAUDE_BOTTLE_OAUTH_TOKEN as CLAUDE_CODE_OAUTH_TOKEN (default: if it is set)")
	fs.BoolVarP(&f.tty, "tty", "t", false, "allocate a terminal for the agent (default: if standard input and output are terminals)")
	fs.BoolVarP(&f.noTTY, "no-tty", "T", false, "do not allocate a terminal for the agent")
	fs.BoolVar(&f.timings, "timings", false, "print the duration of each step on standard error")
	return cmd
}

// agentAndArgs accepts one agent, and further arguments only after "--".
func agentAndArgs(cmd *cobra.Command, args []string) error {
	n := cmd.ArgsLenAtDash()
	if n == -1 {
		n = len(args)
	}
	switch {
	case n == 0:
		return withHint(errors.New(textNoAgent), hintRun)
	case n > 1:
		return withHint(fmt.Errorf(textUnexpectedArg, args[1]), hintAgentArgs)
	}
	return nil
}

// loadManifest reads the manifest of a run and requires its approval.
func (a *app) loadManifest(f *runFlags) (err error) {
	if f.spec.Loaded, err = f.spec.Manifest(); err != nil {
		return err
	}
	f.approval = approvalOf(f.spec.Loaded, f.spec.Caller)
	if f.dryRun {
		a.noteFailure(f.approval.err)
		return nil
	}
	return a.requireApproval(*f)
}

// preparePlan prepares and prints the plan of a run.
func (a *app) preparePlan(h plan.Host, f runFlags) (*plan.Plan, error) {
	if _, ok := a.terminal(); f.spec.Learn && (f.yes || f.spec.NoInput || !ok) {
		return nil, withHint(errors.New(textLearnAsks), hintLearnAsks)
	}
	p, err := plan.Prepare(a.ctx, f.spec, h)
	if err != nil {
		return nil, err
	}
	return p, a.showPlan(p, f.approval, f.json)
}

func (a *app) run(e *bottle.Engine, f runFlags) error {
	plan, err := a.preparePlan(e, f)
	if err != nil {
		return err
	}
	if err := a.confirmStart(f); err != nil {
		return err
	}
	if err := a.readPipes(plan); err != nil {
		return err
	}
	if err := a.askSecrets(plan); err != nil {
		return err
	}
	return a.launchAndAttach(e, plan, f)
}

// launchAndAttach launches the bottle, attaches the caller to its session and
// removes it, whatever happens in between. It returns the first error.
func (a *app) launchAndAttach(e *bottle.Engine, plan *plan.Plan, f runFlags) (err error) {
	options := bottle.ImageOptions{Progress: "auto", Out: a.stderr, Wait: func() { a.note(textBuildWaits) }}
	if a.quiet {
		options.Progress = "quiet"
	}
	if plan, err = e.ProvideImages(a.ctx, plan, options); err != nil {
		return err
	}
	b, err := e.Launch(a.ctx, plan)
	a.endProgress()
	if err != nil {
		return err
	}
	defer func() {
		if rerr := b.Remove(a.ctx); rerr != nil {
			a.printError(withHint(fmt.Errorf(textRemoveFailed, b.Name, rerr), hintRemoveFailed))
			if err == nil {
				err = exitError(exitBottle)
			}
		}
		if f.timings {
			a.printTimings(b.Timings.Steps())
		}
	}()
	defer e.WatchRules(a.ctx)()
	if b.Name != plan.Name {
		a.note(textRenamed, plan.Name, b.Name)
	}
	stopWatch := a.watchProxy(e, b.Name)
	err = a.attach(func(ctx context.Context, cfg bottle.SessionConfig) (*bottle.Session, error) {
		return b.Exec(ctx, cfg)
	}, bottle.SessionConfig{Terminal: a.wantsTerminal(f.tty, f.noTTY)}, a.showRefusals(e, b.Name))
	stopWatch()
	// An unreadable log is not an error, as the session has ended.
	if hosts, serr := e.EgressSummary(context.WithoutCancel(a.ctx), b.Name, time.Time{}); serr == nil {
		a.showSummary(plan.Agent, hosts)
		if plan.Learn {
			a.showLearned(plan, hosts)
		}
	}
	return err
}

// askSecrets asks for the variables and passphrases that the plan needs.
func (a *app) askSecrets(plan *plan.Plan) error {
	for _, q := range plan.Questions() {
		if err := a.answer(plan, q, questionText(q)); err != nil {
			return err
		}
	}
	return nil
}

// passphraseTries is how often a passphrase may be entered, as with ssh.
const passphraseTries = 3

func (a *app) answer(plan *plan.Plan, q plan.Question, text string) (err error) {
	for range passphraseTries {
		var s string
		if s, err = a.readSecret(text); err != nil {
			return err
		}
		if err = plan.Answer(q, secret.New(s)); !errors.Is(err, provision.ErrPassphrase) {
			return err
		}
	}
	return err
}

// signalCode is the exit code after a signal.
func signalCode(s syscall.Signal) int { return exitSignal + int(s) }
