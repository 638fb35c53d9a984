package bottle

import (
	"context"
	"time"

	"github.com/bot-bottle/bottle/internal/timing"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/sshagent"
	"github.com/bot-bottle/bottle/teardown"
)

// Bottle is a live bottle: an agent task, a proxy task and their networks.
type Bottle struct {
	Name string
	// Timings are those of the launch, the session and the removal.
	Timings *timing.Timings

	e     *Engine
	self  teardown.Identity
	plan  *plan.Plan
	relay *sshagent.Forwarding
	agent *runtime.Task
	// warm is the session of the agent's command, if that was started ahead of the run.
	warm  *session.Warm
	began time.Time
}

// Began is when the bottle was launched, or claimed for its run.
func (b *Bottle) Began() time.Time { return b.began }

// Exec starts a process in this bottle: by default the agent's command. If that was started
// ahead of the run, the first such process is that one, and the rest of its environment is
// what it was started with.
func (b *Bottle) Exec(ctx context.Context, cfg session.Config) (*session.Session, error) {
	own := len(cfg.Command) == 0 && len(cfg.Env) == 0 && cfg.Dir == "" && cfg.User == "" && cfg.Terminal
	if len(cfg.Command) == 0 {
		cfg.Command = b.plan.Command
	}
	defer b.Timings.Begin("start session")()
	if err := b.e.beforeExec(b.Name, cfg); err != nil {
		return nil, err
	}
	if w := b.warm; w != nil && own {
		b.warm = nil
		return w.Begin(cfg)
	}
	return session.Start(ctx, b.e.rt, b.Name, cfg, b.agent.Exec)
}

// Exec starts a process in a running bottle. The caller must call Wait.
func (e *Engine) Exec(ctx context.Context, name string, cfg session.Config) (*session.Session, error) {
	if err := e.beforeExec(name, cfg); err != nil {
		return nil, err
	}
	return session.Exec(ctx, e.rt, name, cfg)
}

// beforeExec checks that a session does not bring in what the bottle's proxy keeps out, and
// writes the session to the audit log.
func (e *Engine) beforeExec(name string, cfg session.Config) error {
	if err := e.rt.CheckSuspended(name); err != nil {
		return err
	}
	if err := e.proxies.CheckGiven(name, cfg.Env); err != nil {
		return err
	}
	return e.AuditSession(name, "exec", cfg)
}

// Sessions manages the held sessions of the engine's bottles.
func (e *Engine) Sessions() *session.Manager { return e.sessions }

// Settle is Engine.Settle for this bottle, and never for a later one of its name.
func (b *Bottle) Settle(ctx context.Context) error { return b.e.settle(ctx, b.self) }

// Remove removes the bottle: agent and proxy, networks, directories. It succeeds if
// another process has removed it.
func (b *Bottle) Remove(ctx context.Context) error {
	b.relay.Close()
	b.warm.Close()
	defer b.relay.Wait()
	return b.e.teardown.Remove(ctx, b.self, b.Timings)
}
