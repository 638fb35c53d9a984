package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

// Exit codes as docker has them; those of a session's command are its own.
const (
	exitBottle = 125 // bottle itself failed
	exitSignal = 128 // plus the signal's number
)

// app is what every command has at hand.
type app struct {
	ctx            context.Context
	stdin          io.Reader
	stdout, stderr io.Writer

	address, namespace, manifest string
	hostsDir                     string // --hosts-dir of the command, if it has one
	debug, quiet                 bool
	progress                     *progressView
}

// exitError ends the program with a code of its own and no message: a session's
// exit code, or a failure that was told already.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// run is the whole program but for the process's own affairs. It returns the
// exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var code exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		a.note(textInterrupted)
		return signalCode(syscall.SIGINT)
	}
	a.printError(err)
	return exitBottle
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:               "bottle",
		Short:             textRootShort,
		Long:              textRootLong,
		Version:           version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(textBadFlag, err, cmd.CommandPath()) })
	f := root.PersistentFlags()
	f.StringVar(&a.address, "address", "", "containerd's socket (CONTAINERD_ADDRESS; default "+bottle.DefaultAddress+")")
	f.StringVar(&a.namespace, "namespace", "", "containerd namespace (CONTAINERD_NAMESPACE; default "+bottle.DefaultNamespace+")")
	f.StringVar(&a.manifest, "manifest", "", "manifest file (default: bottle.yaml upwards from here, then ~/.config/bottle/)")
	f.BoolVar(&a.debug, "debug", false, "log what is done to standard error")
	root.AddCommand(a.runCommand(), a.execCommand(), a.listCommand(), a.rmCommand(), a.cleanupCommand(),
		a.egressCommand(), a.proxyCommand(), a.proxyLogCommand(), a.buildCommand())
	root.AddCommand(a.allowCommand(), a.denyCommand())
	root.AddCommand(a.initCommand(), a.configCommand())
	root.AddCommand(a.pullCommand(), a.pushCommand(), a.imagesCommand(), a.rmiCommand())
	root.AddCommand(a.doctorCommand())
	return root
}

// config is the environment's with the flags over it.
func (a *app) config() bottle.Config {
	cfg := bottle.ConfigFromEnv(os.Getenv)
	cfg.Guest = guestProgram()
	if a.address != "" {
		cfg.Address = a.address
	}
	if a.namespace != "" {
		cfg.Namespace = a.namespace
	}
	if a.hostsDir != "" {
		cfg.HostsDir = a.hostsDir
	}
	if !a.quiet {
		a.progress = a.newProgress()
		cfg.Progress = a.progress.tell
	}
	cfg.Notice = func(text string) { a.note("%s", visible(text)) }
	level := slog.LevelWarn
	if a.debug {
		level = slog.LevelDebug
	}
	cfg.Log = slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
	return cfg
}

// endProgress leaves the last state of what was shown on the screen.
func (a *app) endProgress() {
	if a.progress != nil {
		a.progress.end()
	}
}

// withEngine runs fn with a connection to containerd that is closed after it.
func (a *app) withEngine(fn func(*bottle.Engine) error) error {
	e, err := bottle.Open(a.ctx, a.config())
	if err != nil {
		return err
	}
	return errors.Join(fn(e), e.Close())
}
