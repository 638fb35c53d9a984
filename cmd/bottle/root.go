package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/plan"
)

// Exit codes, as docker uses them. A session ends with its command's exit code.
const (
	exitBottle = 125 // bottle itself failed
	exitSignal = 128 // plus the signal's number
)

// app holds the state that all commands share.
type app struct {
	ctx            context.Context
	stdin          io.Reader
	stdout, stderr io.Writer

	address, namespace, manifest string
	hostsDir                     string // --hosts-dir, of the commands that have it
	debug, quiet                 bool
	machine                      bool // the output is for programs: --json
	progress                     *progressView
	lines                        *busyLines
	pipeTimeout                  time.Duration // of a pipe of --env-file; 0: the default

	command string     // in the audit log
	audit   *audit.Log // nil: none, or not opened yet

	// sys is read once, from policyDir; empty: policy.Dir.
	sys       *system
	policyDir string

	// withHost calls fn with the host that a dry run plans for.
	withHost func(fn func(plan.Host) error) error
}

// exitError ends the program with an exit code and without a message: a session's
// exit code, or a failure that was reported before.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run is the program without the process's own state, such as signals. It returns
// the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, lines: terminalLines(stderr)}
	a.withHost = func(fn func(plan.Host) error) error {
		return a.withEngine(func(e *bottle.Engine) error { return fn(e) })
	}
	return a.execute(args)
}

func (a *app) execute(args []string) int {
	root := a.rootCommand()
	root.SetArgs(args)
	err := a.auditRefusals(root.ExecuteContext(a.ctx))
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case a.ctx.Err() != nil && errors.Is(err, context.Canceled):
		a.note(textInterrupted)
		return interruptedCode(a.ctx)
	case errors.Is(err, syscall.EPIPE):
		return signalCode(syscall.SIGPIPE) // as other programs in a pipeline, without a message
	}
	a.printError(err)
	return exitBottle
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:               "bottle",
		Short:             textRootShort,
		Long:              textRootLong,
		Example:           textRootExample,
		Version:           version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              noArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.PersistentPreRun = func(cmd *cobra.Command, _ []string) {
		a.command = strings.TrimPrefix(cmd.CommandPath(), root.Name()+" ")
		for _, name := range []string{"json", "quiet"} {
			f := cmd.Flags().Lookup(name)
			a.machine = a.machine || f != nil && f.Value.String() == "true"
		}
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(flagError)
	f := root.PersistentFlags()
	f.StringVar(&a.address, "address", "", "containerd socket (CONTAINERD_ADDRESS; default "+bottle.DefaultAddress+")")
	f.StringVar(&a.namespace, "namespace", "", "containerd namespace (CONTAINERD_NAMESPACE; default "+bottle.DefaultNamespace+")")
	f.StringVar(&a.manifest, "manifest", "", "manifest file (default: bottle.yaml in this directory or above, then in ~/.config/bottle)")
	f.BoolVar(&a.debug, "debug", false, "log to standard error")
	root.AddCommand(a.attachCommand(), a.logsCommand(), a.waitCommand(), a.startCommand(), a.statsCommand(), a.shellCommand(), a.stopCommand(), a.inspectCommand(), a.versionCommand())
	root.AddCommand(a.runCommand(), a.execCommand(), a.listCommand(), a.rmCommand(), a.cleanupCommand(),
		a.egressCommand(), a.proxyCommand(), a.proxyLogCommand(), a.buildCommand())
	root.AddCommand(a.suspendCommand(), a.resumeCommand(), a.forkCommand())
	root.AddCommand(a.cpCommand(), a.diffCommand(), a.fetchCommand(), a.applyCommand())
	root.AddCommand(a.allowCommand(), a.denyCommand(), a.presetsCommand(), a.secretCommand())
	root.AddCommand(a.initCommand(), a.configCommand(), a.trustCommand(), a.loginCommand(), a.policyFileCommand())
	root.AddCommand(a.pullCommand(), a.pushCommand(), a.imagesCommand(), a.rmiCommand())
	root.AddCommand(a.setupCommand(), a.doctorCommand())
	for _, command := range packaging {
		root.AddCommand(command(a))
	}
	root.AddCommand(a.exportCommand(), a.kubeCommand(), a.poolCommand())
	root.AddCommand(a.kubernetesCommands()...)
	a.addCompletions(root)
	groupCommands(root)
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		root.SetOut(wrapped(a.stdout))
		help(cmd, args)
	})
	return root
}

// packaging are the commands of the program that builds packages (scripts/dist).
var packaging []func(*app) *cobra.Command

// groups are the sections of the help, which are those of docs/commands.md.
var groups = []struct{ title, commands string }{
	{"Agents", "apply attach cleanup cp diff exec fetch fork inspect list logs pool resume rm run shell start stats stop suspend wait"},
	{"Egress", "allow deny egress presets secret"},
	{"Images", "build images pull push rmi"},
	{"On a cluster", "export kube"},
	{"Setup", "completion config doctor help init login policy setup trust version"},
}

func groupCommands(root *cobra.Command) {
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title + ":"})
		for _, name := range strings.Fields(g.commands) {
			for _, cmd := range root.Commands() {
				if cmd.Name() == name {
					cmd.GroupID = g.title
				}
			}
		}
	}
	root.SetHelpCommandGroupID(groups[len(groups)-1].title)
}

// flagError adds a hint to an error of the flag parser.
func flagError(cmd *cobra.Command, err error) error {
	return withHint(err, hintHelp, cmd.CommandPath())
}

// endProgress draws the final state of the progress view.
func (a *app) endProgress() {
	if a.progress != nil {
		a.progress.end()
	}
}

// withEngine calls fn with a connection to containerd and closes it afterwards.
func (a *app) withEngine(fn func(*bottle.Engine) error) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	connected := a.busy(textBusyConnect)
	e, err := bottle.Open(a.ctx, cfg)
	connected()
	if err != nil {
		return err
	}
	return errors.Join(e.Explain(fn(e)), e.Close())
}
