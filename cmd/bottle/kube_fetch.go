package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/kube"
	"github.com/bot-bottle/bottle/kubernetes"
	"github.com/bot-bottle/bottle/worktree"
)

func (a *app) kubeFetchCommand(connect connector) *cobra.Command {
	var size sizeFlag
	var branch string
	cmd := &cobra.Command{
		Use:   "fetch NAME",
		Short: "Bring an agent's commits to a branch of your repository",
		Long:  textKubeFetchLong,
		Args:  oneName,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withAgent(connect, args[0], func(c *kube.Client, agent kube.Agent) error {
				if agent.Work == "" {
					return withHint(fmt.Errorf(textKubeNoRepo, agent.Name), hintKubeNoRepo)
				}
				return a.kubeFetch(c, agent, branch, size)
			})
		},
	}
	cmd.Flags().StringVar(&branch, "branch", "", "name of the branch (default bottle/NAME)")
	size.register(cmd)
	return cmd
}

// kubeFetch fetches the commits of an agent's clone into the repository of the working
// directory, as from a bottle of one host.
func (a *app) kubeFetch(c *kube.Client, agent kube.Agent, branch string, size sizeFlag) error {
	o := a.workOptions(size)
	inside := workPod{c, agent.Name}
	// What the pod answers is not trusted: see worktree.BaseOf.
	var began bytes.Buffer
	if _, err := inside.Run(a.ctx, worktree.Command{
		Args: kubernetes.BaseCommand(agent.Work), Stdout: &limitedWriter{&began, maxObjectName}, Stderr: io.Discard,
	}); err != nil {
		return err
	}
	base, err := worktree.BaseOf(a.ctx, o.Caller, o.Caller.WorkDir, agent.Work, strings.TrimSpace(began.String()))
	if err != nil {
		return err
	}
	if branch == "" {
		branch = kubernetes.Branch(agent.Name)
	}
	work := &worktree.Work{Base: base, Inside: inside, Caller: o.Caller, Limits: o.Limits, Notice: o.Notice}
	done := a.busy(textBusyFetch, shownName(agent.Name))
	list, err := work.Fetch(a.ctx, agent.Name, branch)
	done()
	return a.fetched(list, err)
}

// maxObjectName bounds the answer of git rev-parse, in bytes.
const maxObjectName = 1 << 10

// limitedWriter stores at most left bytes.
type limitedWriter struct {
	*bytes.Buffer
	left int
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return 0, io.ErrShortWrite
	}
	w.left -= len(p)
	return w.Buffer.Write(p)
}

// workPod runs commands beside an agent's work on a cluster. It implements worktree.Inside.
type workPod struct {
	client *kube.Client
	name   string
}

func (p workPod) Run(ctx context.Context, cmd worktree.Command) (int, error) {
	s, err := p.client.ExecWork(ctx, p.name, cmd.Args, kube.Streams{Stdin: cmd.Stdin, Stdout: cmd.Stdout, Stderr: cmd.Stderr})
	if err != nil {
		return 0, err
	}
	return worktree.Await(ctx, s.Wait, func(ended <-chan struct{}) {
		// The API cannot kill a process. It ends when it writes, or with the pod.
		s.Close()
		<-ended
	})
}
