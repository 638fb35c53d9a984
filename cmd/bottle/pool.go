package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/nocore"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/session"
)

func (a *app) poolCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pool COMMAND",
		Short: "Manage the prepared bottles that runs start from",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.poolListCommand(), a.poolFillCommand(), a.poolDrainCommand())
	return cmd
}

func (a *app) poolListCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List prepared bottles", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.withEngine(func(e *bottle.Engine) error {
				pool, err := e.Pool(a.ctx)
				if err != nil {
					return err
				}
				for i := range pool {
					pool[i].Name = shownName(pool[i].Name)
				}
				if asJSON {
					return a.printJSON(pool)
				}
				return a.printPool(pool)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printPool(pool []bottle.PreparedBottle) error {
	if len(pool) == 0 {
		a.note(textPoolEmpty)
		return nil
	}
	t := tabwriter.NewWriter(wrapped(a.stdout), 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tAGENT\tSTATE\tAGE\tMANIFEST")
	for _, b := range pool {
		state := b.State
		if b.Warm {
			state += textPoolWarm
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", visible(b.Name), visible(b.Agent), state, age(time.Since(b.Created)), visible(b.Manifest))
	}
	return t.Flush()
}

func (a *app) poolFillCommand() *cobra.Command {
	var trust bool
	cmd := &cobra.Command{
		Use:   "fill [AGENT...]",
		Short: "Prepare as many bottles as the manifest's pools say, and remove outdated ones",
		Long:  textPoolFillLong,
		RunE: func(_ *cobra.Command, args []string) error {
			nocore.Disable()
			return a.fillPools(args, trust)
		},
	}
	cmd.Flags().BoolVar(&trust, "trust", false, "use a manifest that is not approved (see bottle trust), without approving it")
	return cmd
}

// fillPools fills the pools of agents, or of all agents that have one.
func (a *app) fillPools(agents []string, trust bool) error {
	f := runFlags{yes: true, trust: trust}
	f.spec = plan.Spec{Caller: caller.Current(), ManifestPath: a.manifest, NamesOnly: true}
	getenv := f.spec.Caller.Getenv
	f.spec.Caller.Getenv = func(name string) (string, bool) {
		if name == "CLAUDE_BOTTLE_CONTAINER" { // the name of a run's bottle
			return "", false
		}
		return getenv(name)
	}
	sys, err := a.system()
	if err != nil {
		return err
	}
	f.spec.Rules = sys.rules
	if err := a.loadManifest(&f); err != nil {
		return err
	}
	m := f.spec.Loaded
	if len(agents) == 0 {
		for _, name := range slices.Sorted(maps.Keys(m.Agents)) {
			if m.Agents[name].Pool > 0 {
				agents = append(agents, name)
			}
		}
	}
	if len(agents) == 0 {
		return withHint(errors.New(textNoPools), hintNoPools)
	}
	return a.withEngine(func(e *bottle.Engine) error {
		var errs []error
		for _, name := range agents {
			spec := f.spec
			spec.Agent, spec.Forms = name, m.Agents[name] != nil && m.Agents[name].Warm
			p, err := plan.Prepare(a.ctx, spec, e)
			if err == nil {
				err = e.FillPool(a.ctx, p, p.Pool)
			}
			switch {
			case errors.Is(err, bottle.ErrPending):
				err = withHint(err, hintPoolImage, name)
			case errors.Is(err, bottle.ErrPoolProxy):
				err = withHint(err, hintPoolProxy)
			case errors.Is(err, bottle.ErrPoolForms):
				err = withHint(err, hintPoolForms)
			case isEnded(err):
				err = withHint(err, hintPoolEnded, name)
			}
			if err == nil {
				a.note(textPoolFilled, name, count(p.Pool, "prepared bottle"))
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

func (a *app) poolDrainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "drain [AGENT...]",
		Short: "Remove prepared bottles",
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withEngine(func(e *bottle.Engine) error {
				return e.DrainPool(a.ctx, func(b bottle.PreparedBottle) bool {
					return len(args) == 0 || slices.Contains(args, b.Agent)
				})
			})
		},
	}
}

// refillPool prepares bottles in place of the one that the run of a plan has used, in a
// process of its own: it is in another session, so that neither keys nor the end of the
// terminal reach it, it ends when the pool is full, and nobody waits for it.
func (a *app) refillPool(p *plan.Plan, trust bool) {
	if p.Pool == 0 {
		return
	}
	self, err := os.Executable()
	if err != nil {
		a.noteFailure(err)
		return
	}
	args := []string{"--manifest", p.Manifest}
	for flag, value := range map[string]string{"--address": a.address, "--namespace": a.namespace} {
		if value != "" {
			args = append(args, flag, value)
		}
	}
	args = append(args, "pool", "fill")
	if trust {
		args = append(args, "--trust")
	}
	// Those of pipes with variables, which have been read.
	for fd, open := range inheritable() {
		if fd > 2 && open != ^uintptr(0) {
			unix.CloseOnExec(fd)
		}
	}
	cmd := exec.Command(self, append(args, "--", p.Agent)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Env = a.warmEnv(refillEnv(os.Environ()), p)
	if err := cmd.Start(); err != nil {
		a.noteFailure(fmt.Errorf("fill the pool: %w", err))
		return
	}
	go func() { _ = cmd.Wait() }() // bottle pool fill reports the error when it is called again
}

// isEnded reports that an agent which was started ahead of its run has ended, or could not be
// run.
func isEnded(err error) bool {
	_, ended := errors.AsType[*session.Ended](err)
	_, failed := errors.AsType[*session.Failure](err)
	return ended || failed
}

// warmEnv adds what a process needs that starts a plan's agent ahead of its next run: the
// terminal of this run, and placeholders in place of the values of forwarded variables.
func (a *app) warmEnv(env []string, p *plan.Plan) []string {
	if !p.Warm {
		return env
	}
	set := func(name, value string) {
		env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
		env = append(env, name+"="+value)
	}
	for _, name := range []string{"TERM", "COLORTERM"} {
		if value, ok := os.LookupEnv(name); ok {
			set(name, value)
		}
	}
	if fd, ok := a.terminal(); ok {
		width, height := terminalSize(fd)
		set("COLUMNS", strconv.Itoa(int(width)))
		set("LINES", strconv.Itoa(int(height)))
	}
	for from, placeholder := range p.ForwardedForms() {
		set(from, placeholder)
	}
	return env
}

// refillEnv returns the environment of a process that fills a pool. It needs the names of
// variables, as for which login an agent has. It gets the values only of those that say
// where something is: any other may be a secret.
func refillEnv(environ []string) []string {
	env := make([]string, 0, len(environ))
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if value != "" && !isPlace(name) {
			kv = name + "=hidden"
		}
		if name != helperVariable {
			env = append(env, kv)
		}
	}
	return env
}

// isPlace reports whether a variable is known to contain a path, an address or a user.
func isPlace(name string) bool {
	return slices.Contains([]string{"PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "SSH_AUTH_SOCK", "DOCKER_CONFIG", "BUILDKIT_HOST", "CLAUDE_BOTTLE_IMAGE"}, name) ||
		slices.ContainsFunc([]string{"BOTTLE_", "CNI_", "CONTAINERD_", "SUDO_", "XDG_"}, func(p string) bool { return strings.HasPrefix(name, p) }) ||
		slices.ContainsFunc([]string{"_DIR", "_HOME"}, func(p string) bool { return strings.HasSuffix(name, p) })
}
