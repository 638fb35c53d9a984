package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/kube"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/session"
)

// kubeCommand groups the commands that use agents on a cluster, with the names and output of
// those for one host.
func (a *app) kubeCommand() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "kube",
		Short: "Run agents on a Kubernetes cluster",
		Long:  textKubeLong,
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&name, "context", "", "the context in the kubeconfig (default: the current one)")
	connect := func() (*kube.Client, error) { return kube.Connect(name) }
	cmd.AddCommand(a.kubeRunCommand(connect), a.kubeExecCommand(connect), a.kubeAttachCommand(connect), a.kubeLogsCommand(connect),
		a.kubeEgressCommand(connect), a.kubeFetchCommand(connect), a.kubeListCommand(connect), a.kubeRmCommand(connect))
	return cmd
}

type connector func() (*kube.Client, error)

// kubeOutput shows what a session has printed that has ended, and returns its exit code as an
// exitError.
func (a *app) kubeOutput(c *kube.Client, agent kube.Agent) error {
	log, err := c.Log(a.ctx, agent.Name, false)
	if err != nil {
		return err
	}
	_, err = io.Copy(a.stdout, log)
	if err = errors.Join(err, log.Close()); err == nil && agent.Code != 0 {
		err = exitError(agent.Code)
	}
	return err
}

// kubeJoin connects the caller with an agent's session, until it ends or the caller leaves
// it.
func (a *app) kubeJoin(c *kube.Client, agent kube.Agent, keys string, noStdin bool) (left bool, err error) {
	detachKeys, err := term.ToBytes(keys)
	if err != nil {
		return false, withHint(fmt.Errorf(textBadKeys, keys), hintBadKeys)
	}
	s := &kubeSession{}
	shown := &countingWriter{}
	err = a.attach(func(ctx context.Context, cfg session.Config) (process, error) {
		streams := kube.Streams{Stdin: &leavingReader{term.NewEscapeProxy(cfg.Stdin, detachKeys), s}, Stdout: shown, Stderr: cfg.Stderr, Width: cfg.Width, Height: cfg.Height}
		shown.Writer = cfg.Stdout
		if noStdin {
			streams.Stdin = nil
		}
		conn, err := c.Attach(ctx, agent, streams)
		if err != nil {
			return nil, err
		}
		s.set(conn, func(lost error) (int, error) {
			if lost != nil {
				// Perhaps the agent has ended before.
				if now, err := c.Agent(a.ctx, agent.Name); err != nil || !now.Ended {
					return 0, lost
				}
			}
			// The connection ends before the pod says how the session did.
			ended, err := c.Wait(a.ctx, agent.Name, func(now kube.Agent) bool { return now.Ended })
			return ended.Code, err
		})
		return s, nil
	}, session.Config{Terminal: true}, noNotices)
	if errors.Is(err, kube.ErrClosed) {
		a.note(textKubeDetached, agent.Name, agent.Name)
		return true, nil
	}
	if code, ok := errors.AsType[exitError](err); shown.n == 0 && (err == nil || ok) {
		agent.Code = int(code)
		return false, a.kubeOutput(c, agent) // it was faster than the connection
	}
	return false, err
}

// countingWriter counts what is written.
type countingWriter struct {
	io.Writer
	n int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n += int64(n)
	return n, err
}

// leavingReader ends the connection when the keys are typed that leave a session.
type leavingReader struct {
	io.Reader
	session *kubeSession
}

func (r *leavingReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if errors.As(err, &term.EscapeError{}) {
		r.session.leave()
		err = io.EOF
	}
	return n, err
}

func (a *app) kubeExecCommand(connect connector) *cobra.Command {
	var tty, noTTY bool
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME [--] COMMAND [ARG...]",
		Short: "Run a command in an agent's pod",
		Args: func(_ *cobra.Command, args []string) error {
			_, _, err := nameAndCommand(args)
			return err
		},
		RunE: func(_ *cobra.Command, args []string) error {
			defer catchBrokenPipes()()
			name, command, err := nameAndCommand(args)
			if err != nil {
				return err
			}
			return a.withAgent(connect, name, func(c *kube.Client, agent kube.Agent) error {
				if !agent.Running {
					return fmt.Errorf(textKubeNotYet, agent.Name, visible(agent.Status))
				}
				return a.attach(func(ctx context.Context, cfg session.Config) (process, error) {
					conn, err := c.Exec(ctx, agent.Name, command, kube.Streams{
						Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr, Terminal: cfg.Terminal, Width: cfg.Width, Height: cfg.Height,
					})
					if err != nil {
						return nil, err
					}
					s := &kubeSession{}
					s.set(conn, nil)
					return s, nil
				}, session.Config{Terminal: a.wantsTerminal(tty, noTTY)}, noNotices)
			})
		},
	}
	cmd.Flags().SetInterspersed(false)
	cmd.Flags().BoolVarP(&tty, "tty", "t", false, "allocate a terminal (default: if standard input and output are terminals)")
	cmd.Flags().BoolVarP(&noTTY, "no-tty", "T", false, "do not allocate a terminal")
	return cmd
}

// withAgent connects and looks an agent up.
func (a *app) withAgent(connect connector, name string, fn func(*kube.Client, kube.Agent) error) error {
	c, err := connect()
	if err != nil {
		return err
	}
	agent, err := c.Agent(a.ctx, name)
	if err != nil {
		return err
	}
	return fn(c, agent)
}

func (a *app) kubeAttachCommand(connect connector) *cobra.Command {
	var keys string
	var noStdin bool
	cmd := &cobra.Command{
		Use:   "attach NAME",
		Short: "Rejoin the session of an agent on the cluster",
		Args:  oneName,
		RunE: func(_ *cobra.Command, args []string) error {
			defer catchBrokenPipes()()
			return a.withAgent(connect, args[0], func(c *kube.Client, agent kube.Agent) error {
				switch {
				case agent.Ended:
					return withHint(fmt.Errorf(textKubeEnded, agent.Name, agent.Code), hintKubeEnded, agent.Name, agent.Name)
				case !agent.Running:
					return fmt.Errorf(textKubeNotYet, agent.Name, visible(agent.Status))
				}
				if _, ok := a.terminal(); !ok && !noStdin {
					return withHint(fmt.Errorf(textNeedsTerminal, agent.Name), hintKubeNeedsTerm)
				}
				_, err := a.kubeJoin(c, agent, keys, noStdin)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&keys, "detach-keys", defaultDetachKeys, textDetachKeys)
	cmd.Flags().BoolVar(&noStdin, "no-stdin", false, "do not forward standard input")
	return cmd
}

func (a *app) kubeLogsCommand(connect connector) *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show the output of an agent's session",
		Args:  oneName,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withAgent(connect, args[0], func(c *kube.Client, agent kube.Agent) error {
				log, err := c.Log(a.ctx, agent.Name, follow)
				if err != nil {
					return err
				}
				_, err = io.Copy(a.stdout, log)
				return errors.Join(err, log.Close())
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "continue with new output until the session ends")
	return cmd
}

func (a *app) kubeEgressCommand(connect connector) *cobra.Command {
	var asJSON, denied, follow bool
	cmd := &cobra.Command{
		Use:   "egress NAME",
		Short: "Show the egress log of an agent on the cluster: requests, verdicts and reasons",
		Args:  oneName,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withAgent(connect, args[0], func(c *kube.Client, agent kube.Agent) error {
				log, err := c.EgressLog(a.ctx, agent.Name, follow)
				if err != nil {
					return err
				}
				return errors.Join(a.showEgress(egress.ParseLog(log), denied, asJSON), log.Close())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	cmd.Flags().BoolVar(&denied, "denied", false, "show only refused requests")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "continue with new entries until the agent is removed")
	return cmd
}

func (a *app) kubeListCommand(connect connector) *cobra.Command {
	var asJSON, quiet bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "ps"}, Short: "List the agents on the cluster", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := connect()
			if err != nil {
				return err
			}
			list, err := c.List(a.ctx)
			switch {
			case err != nil:
				return err
			case asJSON:
				return a.printJSON(list)
			case quiet:
				return printEach(a, func(v any) (string, error) { return v.(kube.Agent).Name, nil }, list)
			case len(list) == 0:
				a.note(textKubeNoAgents)
				return nil
			}
			t := tabwriter.NewWriter(wrapped(a.stdout), 0, 0, 3, ' ', 0)
			_, _ = fmt.Fprintln(t, "NAME\tAGENT\tIMAGE\tRUNTIME\tSTATUS\tAGE\tNODE")
			for _, s := range list {
				_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", visible(s.Name), visible(s.Agent), visible(s.Image), visible(s.Runtime),
					visible(s.Status), age(time.Since(s.Created)), visible(s.Node))
			}
			return t.Flush()
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print names only")
	cmd.MarkFlagsMutuallyExclusive("json", "quiet")
	return cmd
}

func (a *app) kubeRmCommand(connect connector) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Short: "Remove agents from the cluster, with their namespaces", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := connect()
			if err != nil {
				return err
			}
			var errs []error
			for _, name := range args {
				if err := c.Remove(a.ctx, name); err != nil {
					errs = append(errs, err)
					continue
				}
				a.note(textKubeRemoved, name)
			}
			return errors.Join(errs...)
		},
	}
}

// kubeSession is a connection with a pod as a process. The API cannot send signals: on a
// terminal they are keys, and otherwise they end the connection.
type kubeSession struct {
	// result is the exit code of an attached session, whose connection has ended with lost.
	result func(lost error) (int, error)

	mu      sync.Mutex
	conn    *kube.Session
	leaving bool // before the connection was known
}

func (s *kubeSession) set(conn *kube.Session, result func(lost error) (int, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn, s.result = conn, result
	if s.leaving {
		conn.Close()
	}
}

func (s *kubeSession) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
	if s.conn != nil {
		s.conn.Close()
	}
}

func (s *kubeSession) Wait() (int, error) {
	code, err := s.conn.Wait()
	if s.result != nil && !errors.Is(err, kube.ErrClosed) {
		return s.result(err)
	}
	return code, err
}

func (s *kubeSession) Signal(context.Context, syscall.Signal) error {
	s.leave()
	return nil
}

func (s *kubeSession) Resize(_ context.Context, width, height uint16) error {
	s.conn.Resize(width, height)
	return nil
}

func (*kubeSession) Killed() bool { return false }

func (*kubeSession) LimitsReached() []*proxy.LimitError { return nil }

// noNotices shows nothing in the terminal's title.
func noNotices(ctx context.Context, _ *screen) { <-ctx.Done() }
