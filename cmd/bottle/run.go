package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/nocore"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/session"
)

type runFlags struct {
	spec                            plan.Spec
	yes, dryRun, json, timings, tty bool
	noTTY                           bool
	env                             envFlags
	token                           bool
	trust                           bool
	approval                        *approval // of the manifest
	discard, fetch                  bool      // the work, at the end
	detach, keep                    bool
	detachKeys                      string
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:     "run AGENT [flags] [-- ARGS...]",
		Short:   "Run an agent in a new bottle",
		Long:    textRunLong,
		Example: textRunExample,
		Args:    nameAndArgs(textNoAgent, hintRun),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.spec.Agent, f.spec.Args = args[0], args[1:]
			return a.runAgent(cmd, f)
		},
	}
	f.register(a, cmd)
	fs := cmd.Flags()
	fs.StringVar(&f.spec.Name, "name", "", "name of the bottle (CLAUDE_BOTTLE_CONTAINER; default: claude-bottle-AGENT)")
	fs.BoolVar(&f.spec.Cwd, "cwd", false, "give the agent a copy of the working directory, and keep its work")
	fs.BoolVar(&f.spec.CwdImage, "cwd-image", false, "run on an image with a copy of the working directory, and keep nothing")
	fs.BoolVar(&f.spec.CwdIgnored, flagCwdIgnored, false, "with --cwd: also copy files that git ignores")
	fs.StringVar(&f.spec.CwdTarget, flagCwdTarget, "", "where the copy is placed in the bottle (default "+plan.DefaultCwdTarget+")")
	fs.BoolVar(&f.spec.CwdForce, flagCwdForce, false, "allow --cwd and --cwd-image in a home directory or /")
	fs.StringVar(&f.spec.Runtime, "runtime", "", "runsc (gVisor) or runc (default runsc)")
	fs.BoolVar(&f.spec.Learn, "learn", false, "block nothing public, and print a patch for the manifest at the end")
	cmd.MarkFlagsMutuallyExclusive("detach", "keep", "learn")
	return cmd
}

// register registers the flags of the commands that run an agent.
func (f *runFlags) register(a *app, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.BoolVarP(&f.yes, "yes", "y", false, "start without confirmation")
	fs.BoolVar(&f.trust, "trust", false, "use a manifest that is not approved (see bottle trust), without approving it")
	fs.BoolVar(&f.spec.NoInput, "no-input", false, "fail instead of asking a question")
	fs.BoolVar(&f.dryRun, "dry-run", false, "show the plan and stop")
	fs.BoolVar(&f.json, "json", false, "print the plan as JSON on standard output")
	fs.BoolVar(&f.discard, flagDiscard, false, "do not keep the agent's work (with --cwd)")
	fs.BoolVar(&f.fetch, flagFetch, false, "fetch the agent's work at the end (with --cwd)")
	fs.StringVar(&f.spec.Pull, "pull", "", "when to pull the image: "+strings.Join(plan.PullPolicies, ", ")+" (default "+plan.PullMissing+")")
	fs.StringVar(&a.hostsDir, "hosts-dir", "", textHostsDir)
	fs.BoolVarP(&a.quiet, "quiet", "q", false, "do not show the progress of pulling, building and copying, nor, with --yes, the plan")
	fs.StringVar(&f.spec.Proxy, "proxy", "", "pipelock or builtin (default: the manifest's, or pipelock)")
	f.env.register(fs)
	fs.BoolVar(&f.token, flagToken, false, "forward CLAUDE_BOTTLE_OAUTH_TOKEN as CLAUDE_CODE_OAUTH_TOKEN (default: if it is set)")
	fs.BoolVarP(&f.tty, "tty", "t", false, "allocate a terminal for the agent (default: if standard input and output are terminals)")
	fs.BoolVarP(&f.noTTY, "no-tty", "T", false, "do not allocate a terminal for the agent")
	fs.BoolVarP(&f.detach, "detach", "d", false, "leave the agent running in the background, with a terminal unless -T is given")
	fs.BoolVar(&f.keep, "keep", false, "let the agent run on if this command is detached or loses its terminal")
	fs.StringVar(&f.detachKeys, "detach-keys", defaultDetachKeys, textDetachKeys+" (with --keep)")
	cmd.MarkFlagsMutuallyExclusive("detach", flagDiscard)
	cmd.MarkFlagsMutuallyExclusive("detach", flagFetch)
	fs.BoolVar(&f.timings, "timings", false, "print the duration of each step on standard error")
	cmd.MarkFlagsMutuallyExclusive(flagDiscard, flagFetch)
	cmd.MarkFlagsMutuallyExclusive("detach", "keep")
}

// runAgent runs the agent of f.spec.
func (a *app) runAgent(cmd *cobra.Command, f runFlags) error {
	if (f.detach || f.keep) && !f.dryRun && !isHelper() {
		return a.runByHelper(f)
	}
	if f.spec.ManifestPath == "" {
		f.spec.ManifestPath = a.manifest
	}
	nocore.Disable()
	defer catchBrokenPipes()()
	f.spec.Caller = caller.Current()
	sys, err := a.system()
	if err != nil {
		return err
	}
	f.spec.Rules = sys.rules
	_, onTerminal := a.terminal()
	f.spec.Terminal = onTerminal && !f.noTTY && !f.detach && !f.keep
	f.spec.Env = f.env.env
	if cmd.Flags().Changed(flagToken) {
		f.spec.ForwardToken = &f.token
	}
	if err := checkWorkFlags(cmd, f); err != nil {
		return err
	}
	if err := a.loadManifest(&f); err != nil {
		return err
	}
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
}

// nameAndArgs accepts one name, and further arguments only after "--".
func nameAndArgs(missing, hint string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		n := cmd.ArgsLenAtDash()
		if n == -1 {
			n = len(args)
		}
		switch {
		case n == 0:
			return withHint(errors.New(missing), "%s", hint)
		case n > 1:
			return withHint(fmt.Errorf(textUnexpectedArg, args[1]), hintAgentArgs)
		}
		return nil
	}
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
	done := a.busy(textBusyPlan)
	p, err := plan.Prepare(a.ctx, f.spec, h)
	done()
	if err != nil {
		return nil, err
	}
	if a.quiet && f.yes && !f.dryRun && !f.json {
		return p, nil // nobody is asked whether it is right
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
	if err := plan.RunCommands(a.ctx, a.stderr); err != nil {
		return err
	}
	return a.launchAndAttach(e, plan, f)
}

// launchAndAttach launches the bottle, attaches the caller to its session and
// removes it, whatever happens in between. It returns the first error.
func (a *app) launchAndAttach(e *bottle.Engine, plan *plan.Plan, f runFlags) (err error) {
	options := supply.Options{Progress: "auto", Out: a.stderr, Wait: func() { a.note(textBuildWaits) }}
	if a.quiet {
		options.Progress = "quiet"
	}
	if err := a.auditBuild(plan); err != nil {
		return err
	}
	if plan, err = e.Images().Provide(a.ctx, plan, options); err != nil {
		return err
	}
	if f.spec.Resume != nil {
		// But not its workspace.
		if err := a.while(fmt.Sprintf(textBusyRemove, shownName(plan.Name)), func() error { return e.Remove(a.ctx, plan.Name) }); err != nil {
			return err
		}
	}
	done := a.busy(textBusyStart, shownName(plan.Name))
	b, err := e.Launch(a.ctx, plan)
	done()
	a.endProgress()
	if err != nil {
		return err
	}
	remove := true
	defer func() {
		if !remove {
			return
		}
		end := a.beginEnd(e, b.Name, f)
		if rerr := a.while(fmt.Sprintf(textBusyRemove, shownName(b.Name)), func() error { return b.Remove(a.ctx) }); rerr != nil {
			a.printError(withHint(fmt.Errorf(textRemoveFailed, shownName(b.Name), rerr), hintRemoveFailed))
			if err == nil {
				err = exitError(exitBottle)
			}
		} else if werr := a.endWork(e, b.Name, end, f); werr != nil && err == nil {
			err = werr
		}
		if f.timings {
			a.printTimings(b.Timings.Steps())
		}
	}()
	if b.Name != plan.Name {
		a.note(textRenamed, shownName(plan.Name), shownName(b.Name))
	}
	if isHelper() {
		if f.timings {
			a.printTimings(b.Timings.Steps())
		}
		err := a.runAsHelper(e, b, plan, f)
		remove = err != nil
		return err
	}
	defer e.WatchRules(a.ctx)()
	defer releaseWhenIdle()()
	stopWatch, stopSecrets := a.watchProxy(e, b.Name), a.watchSecrets(b)
	err = a.attach(func(ctx context.Context, cfg session.Config) (process, error) {
		s, err := b.Exec(ctx, cfg)
		if err != nil {
			return nil, err
		}
		a.refillPool(plan, f.trust)
		return s, nil
	}, session.Config{Terminal: a.wantsTerminal(f.tty, f.noTTY)}, a.showRefusals(e, b.Name))
	stopSecrets()
	stopWatch()
	since := time.Time{}
	if plan.Warm { // what was refused to the agent before the run is not the run's
		since = b.Began()
	}
	// An unreadable log is not an error, as the session has ended.
	if hosts, serr := e.Proxies().Summary(context.WithoutCancel(a.ctx), b.Name, since); serr == nil {
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
