package bottle

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/bot-bottle/bottle/egress/inject"
	"github.com/bot-bottle/bottle/internal/secret"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/session"
)

// The agent of a prepared bottle may be started ahead of its run, with placeholders in place
// of the values that are injected, and no other secret (plan.WarmObstacle). PID 1 holds its
// session until a run claims it, and ends the sandbox if the session ends before: the bottle
// is then dead, as any other whose sandbox has ended.

// warmRecord is what a run needs to know of an agent that was started ahead of it.
type warmRecord struct {
	// Sum is that of everything that the agent was started with.
	Sum string `json:"sum"`
	// Placeholders are those in its environment, by variable.
	Placeholders map[string]string `json:"placeholders,omitempty"`
}

// startWarm starts the agent of a bottle that is being prepared.
func (l *launch) startWarm(ctx context.Context) error {
	l.placeholders = map[string]string{}
	for _, v := range l.plan.Env {
		if len(v.Inject) > 0 {
			// The plan's has the same form, but may be that of another bottle.
			l.placeholders[v.Name] = inject.Placeholder(v.Secret.Reveal())
		}
	}
	img := session.Image(l.rootfs)
	if err := session.GiveFiles(l.dir, l.provisions().LateFiles(img), l.rootfs.User); err != nil {
		return err
	}
	cfg := session.Config{Command: l.plan.Command, Terminal: true, Width: l.e.cfg.WarmSize[0], Height: l.e.cfg.WarmSize[1]}
	if err := l.e.AuditSession(l.plan.Name, "exec", cfg); err != nil {
		return err
	}
	if err := session.StartWarm(ctx, l.e.rt, l.plan.Name, cfg); err != nil {
		return fmt.Errorf("start the agent ahead of its run: %w", err)
	}
	return nil
}

func (l *launch) warmRecord(img provision.Image) (*warmRecord, error) {
	if l.placeholders == nil {
		return nil, nil
	}
	sum, err := l.warmSum(img)
	return &warmRecord{Sum: sum, Placeholders: l.placeholders}, err
}

// warmSum is the sum of everything that the agent's process is started with, except what
// decides on the bottle (preparedKey) and the files in its root file system.
func (l *launch) warmSum(img provision.Image) (string, error) {
	a := l.plan.Provisions()
	a.Variables = replaceInjected(a.Variables, func(v provision.Variable) string { return inject.Form(v.Secret.Reveal()) })
	if l.injection != nil {
		a.Trust = l.injection.Trust()
	}
	return sumJSON(struct {
		Command, Terminal []string
		Files             []provision.GuestFile
	}{l.plan.Command, session.TerminalEnv(), a.LateFiles(img)})
}

// replaceInjected returns variables with other values in place of those that are injected.
func replaceInjected(vars []provision.Variable, value func(provision.Variable) string) []provision.Variable {
	vars = slices.Clone(vars)
	for i, v := range vars {
		if len(v.Inject) > 0 {
			vars[i].Secret = secret.New(value(v))
		}
	}
	return vars
}

var errOtherAgent = errors.New("prepared for another start of its agent")

// fitsWarm checks that the plan's run may use the agent that was started in a prepared bottle,
// or needs none.
func (l *launch) fitsWarm(r preparedRecord) error {
	if l.plan.UsesWarm() != (r.Warm != nil) {
		return errOtherAgent
	}
	if r.Warm == nil {
		return nil
	}
	sum, err := l.warmSum(r.Image)
	if err == nil && sum != r.Warm.Sum {
		err = errOtherAgent
	}
	return err
}
