package bottle

import (
	"errors"
	"strings"

	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/sshagent"
)

// auditStart writes the start of a bottle, and each secret that it gets by its name.
func (l *launch) auditStart() error {
	log, p := l.e.cfg.Audit, l.plan
	if log == nil {
		return nil
	}
	start := startEvent(p)
	if policy := l.e.cfg.Rules.Policy(); policy != nil {
		start.PolicySHA256 = policy.SHA256
	}
	if err := log.Write(start); err != nil {
		return err
	}
	if err := auditSecrets(log, p.Name, p.Secrets()); err != nil {
		return err
	}
	for _, h := range p.SSH {
		if err := log.Write(audit.Event{Kind: audit.SecretUse, Bottle: p.Name, Secret: h.Host, Source: "ssh_" + h.Mode}); err != nil {
			return err
		}
	}
	return nil
}

func startEvent(p *plan.Plan) audit.Event {
	return audit.Event{
		Kind: audit.Start, Bottle: p.Name, Agent: p.Agent, Manifest: p.Manifest, ManifestSHA256: p.ManifestSHA256(),
		Image: p.Image, ImageDigest: p.ImageDigest, Runtime: p.Runtime, Proxy: p.Proxy.Kind,
	}
}

// auditSecrets writes an event for each variable that is a secret.
func auditSecrets(log *audit.Log, bottle string, vars []provision.Variable) error {
	for _, v := range vars {
		if v.Source == manifest.SourceLiteral { // which is written in the manifest
			continue
		}
		e := audit.Event{Kind: audit.SecretUse, Bottle: bottle, Secret: v.Name, Source: strings.ReplaceAll(v.Source, " ", "_")}
		if err := log.Write(e); err != nil {
			return err
		}
	}
	return nil
}

// auditEnd writes the end of a bottle and returns err, with that of the log.
func auditEnd(log *audit.Log, name, action string, err error) error {
	event := audit.Event{Kind: audit.End, Bottle: name, Action: action}
	if err != nil {
		event.Error = err.Error()
	}
	if werr := log.Write(event); werr != nil {
		return errors.Join(err, werr)
	}
	return err
}

// AuditSession writes that a process is about to be started in a bottle, with the secrets
// that it gets. Exec calls it; callers of Sessions must. Action is "exec" or "attach".
func (e *Engine) AuditSession(name, action string, cfg session.Config) error {
	event := audit.Event{Kind: audit.Session, Bottle: name, Action: action}
	if len(cfg.Command) > 0 {
		event.Program = cfg.Command[0] // the rest may contain secrets
	}
	if err := e.cfg.Audit.Write(event); err != nil {
		return err
	}
	return auditSecrets(e.cfg.Audit, name, cfg.Env)
}

// auditSignature writes a signature that a process in the sandbox has requested.
func (l *launch) auditSignature(e sshagent.Event) error {
	return l.e.cfg.Audit.Write(audit.Event{
		Kind: audit.Signature, Bottle: l.plan.Name, Host: e.Host, HostKey: e.HostKey, Login: e.User, Key: e.Key,
		Granted: &e.Granted, Reason: e.Reason,
	})
}
