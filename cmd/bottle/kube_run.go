package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle/injection"
	"github.com/bot-bottle/bottle/internal/nocore"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/kube"
	"github.com/bot-bottle/bottle/kubernetes"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
)

func (a *app) kubeRunCommand(connect connector) *cobra.Command {
	var opt kubernetes.Options
	var proxy string
	var detach bool
	count := 1
	cmd := &cobra.Command{
		Use:     "run AGENT [flags]",
		Short:   "Run an agent on the cluster",
		Example: textKubeRunExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return withHint(errors.New(textNoAgent), hintKubeRun)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			nocore.Disable()
			defer catchBrokenPipes()()
			_, terminal := a.terminal()
			switch {
			case count < 1:
				return fmt.Errorf(textKubeCount, count)
			case count > 1 && !detach:
				return withHint(errors.New(textKubeManyDetach), hintKubeManyDetach)
			case !terminal && !detach:
				return withHint(errors.New(textKubeNeedsTerm), hintKubeNeedsTerm)
			}
			c, err := connect()
			if err != nil {
				return err
			}
			opt.Version = version()
			r := &kubeRun{a: a, client: c, opt: opt, pinned: opt.Namespace != "" && count == 1, detach: detach}
			return r.run(plan.Spec{Agent: args[0], Proxy: proxy}, count)
		},
	}
	registerExport(cmd.Flags(), &opt, &proxy)
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "return when the agent runs, leave it running, and print its name")
	cmd.Flags().IntVarP(&count, "number", "n", 1, "run this many agents; needs --detach")
	return cmd
}

// kubeRun is a start of agents on a cluster.
type kubeRun struct {
	a      *app
	client *kube.Client
	opt    kubernetes.Options
	plan   *plan.Plan
	base   string // the first of the names
	pinned bool   // no other name is used
	detach bool
	used   atomic.Int64 // names tried
}

func (r *kubeRun) run(spec plan.Spec, count int) (err error) {
	if r.plan, err = r.a.planForCluster(spec); err != nil {
		return err
	}
	if r.base, err = kubernetes.Namespace(r.plan, r.opt); err != nil {
		return err
	}
	// What is wrong is found here, before anything is created.
	_, _, opt, err := r.objects(r.base)
	if err != nil {
		return err
	}
	r.a.warnCluster(r.plan, opt)
	if count > 1 {
		return r.many(count)
	}
	agent, err := r.start(func(agent kube.Agent) { r.a.note(textKubeStarting, agent.Name, visible(agent.Status)) })
	if err != nil {
		return err
	}
	if r.detach {
		return r.detached(agent)
	}
	return r.attached(agent)
}

// createAtOnce is how many agents are created at the same time: the API's clients have
// limits, and so has the API.
const createAtOnce = 10

// many starts agents in the background. Those that cannot be started are removed, and the
// others stay.
func (r *kubeRun) many(count int) error {
	errs := make([]error, count)
	slots := make(chan struct{}, createAtOnce)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			slots <- struct{}{}
			name, err := r.create()
			<-slots
			var agent kube.Agent
			if err == nil {
				agent, err = r.wait(name, func(kube.Agent) {})
			}
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				err = r.detached(agent)
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (r *kubeRun) detached(agent kube.Agent) error {
	r.a.note(textKubeDetached, agent.Name, agent.Name)
	_, err := fmt.Fprintln(r.a.stdout, agent.Name)
	return err
}

// start creates an agent and waits until it runs.
func (r *kubeRun) start(changed func(kube.Agent)) (kube.Agent, error) {
	name, err := r.create()
	if err != nil {
		return kube.Agent{}, err
	}
	return r.wait(name, changed)
}

// maxNames bounds the names that are tried.
const maxNames = 10_000

// create creates the objects of an agent, with the next name that is free: as on one host,
// the second agent has the suffix -2.
func (r *kubeRun) create() (string, error) {
	for {
		n := r.used.Add(1)
		name := r.base
		if n > 1 {
			name = fmt.Sprintf("%s-%d", r.base, n)
		}
		objects, secrets, _, err := r.objects(name)
		if err != nil {
			return "", err
		}
		err = r.client.Create(r.a.ctx, objects, secrets)
		switch {
		case err == nil:
			return name, nil
		case !errors.Is(err, kube.ErrExists):
			return "", err
		case r.pinned || n >= maxNames:
			return "", withHint(err, hintKubeExists, name)
		}
	}
}

// objects returns the objects of an agent and the contents of its Secrets. Each agent has an
// authority and placeholders of its own.
func (r *kubeRun) objects(name string) (_ []byte, secrets map[string]map[string]secret.Value, opt kubernetes.Options, err error) {
	opt = r.opt
	opt.Namespace = name
	variables, secrets := r.plan.Env, map[string]map[string]secret.Value{}
	if r.plan.Proxy.Kind == manifest.ProxyBuiltin {
		in, err := injection.New(r.plan)
		if err != nil {
			return nil, nil, opt, err
		}
		if in != nil {
			data, err := in.Encode()
			if err != nil {
				return nil, nil, opt, err
			}
			trust := in.Trust()
			opt.Trust, variables = &trust, in.Placeholders(variables)
			secrets[kubernetes.ProxySecret] = map[string]secret.Value{kubernetes.SecretsKey: secret.New(string(data))}
		}
	}
	values := map[string]secret.Value{}
	for _, v := range variables {
		if v.IsSecret() {
			values[v.Name] = v.Secret
		}
	}
	if len(values) > 0 {
		secrets[kubernetes.AgentSecret] = values
	}
	objects, err := kubernetes.Export(r.plan, opt)
	return objects, secrets, opt, err
}

// wait waits until an agent runs. One that does not start is removed.
func (r *kubeRun) wait(name string, changed func(kube.Agent)) (kube.Agent, error) {
	last := ""
	agent, err := r.client.Wait(r.a.ctx, name, func(agent kube.Agent) bool {
		if agent.Status != last {
			last = agent.Status
			changed(agent)
		}
		return agent.Running || agent.Ended
	})
	if err == nil && agent.Failed {
		why := agent.Status
		if reason := r.client.Reason(r.a.ctx, agent); reason != "" {
			why += ": " + reason
		}
		err = fmt.Errorf(textKubeFailed, name, visible(why))
	}
	if err != nil {
		err = errors.Join(err, r.client.Remove(context.WithoutCancel(r.a.ctx), name))
	}
	return agent, err
}

// attached connects to the session of an agent. As on one host, the agent is removed at the
// end of the session, unless it was left, or has work that can still be fetched.
func (r *kubeRun) attached(agent kube.Agent) error {
	var left bool
	var err error
	if agent.Running {
		left, err = r.a.kubeJoin(r.client, agent, defaultDetachKeys, false)
	} else {
		err = r.a.kubeOutput(r.client, agent) // it was faster than the connection
	}
	switch {
	case left:
		return err
	case agent.Work != "":
		r.a.note(textKubeKept, agent.Name, agent.Name)
		return err
	}
	return errors.Join(err, r.client.Remove(context.WithoutCancel(r.a.ctx), agent.Name))
}
