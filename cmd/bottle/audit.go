package main

import (
	"errors"
	"os"

	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/policy"
	"github.com/bot-bottle/bottle/proxy"
)

// auditLog returns the log of the system configuration. A process without root's rights
// has none: it can do nothing for which others need a record.
func (a *app) auditLog() *audit.Log {
	if a.audit == nil && os.Geteuid() == 0 && a.sys != nil {
		a.audit = audit.Open(a.sys.config.Audit, audit.Current(caller.Current().UID, a.command), func(err error) {
			a.note(textAuditFailed, visible(err.Error()))
		})
	}
	return a.audit
}

// auditRefusals writes what the policy has refused, and returns err, with that of the log.
func (a *app) auditRefusals(err error) error {
	var events []audit.Event
	for _, one := range hint.Split(err) {
		e := audit.Event{Kind: audit.Refusal, Reason: one.Error()}
		if r, ok := errors.AsType[*policy.Refusal](one); ok {
			e.PolicyKey = r.Key
		} else if r, ok := errors.AsType[*policy.Refused](one); ok {
			e.PolicyKey = r.Key
		} else if r, ok := errors.AsType[internalCall](one); ok {
			e.PolicyKey, e.Reason = "internal", string(r)
		} else {
			continue
		}
		events = append(events, e)
	}
	if len(events) == 0 {
		return err
	}
	sys, serr := a.system()
	if serr != nil {
		return err // nothing says where to write, and what is wrong is reported by each command
	}
	for _, e := range events {
		if p := sys.rules.Policy(); p != nil {
			e.PolicySHA256 = p.SHA256
		}
		if werr := a.auditLog().Write(e); werr != nil {
			return errors.Join(err, werr)
		}
	}
	return err
}

// auditBuildSecret writes that a build gets a secret.
func (a *app) auditBuildSecret(bottle, image, name string) error {
	return a.auditLog().Write(audit.Event{Kind: audit.SecretUse, Bottle: bottle, Image: image, Secret: name, Source: policy.SecretBuild})
}

// auditBuild writes the secrets that the build of a plan gets.
func (a *app) auditBuild(p *plan.Plan) error {
	if p.Build == nil {
		return nil
	}
	for _, s := range p.Build.Secrets {
		if err := a.auditBuildSecret(p.Name, p.Build.Image, s.ID); err != nil {
			return err
		}
	}
	return nil
}

// auditedChange changes the policy of a running bottle. The change is written before, and
// again with its result.
func (a *app) auditedChange(e interface{ Proxies() *proxy.Manager }, v policyVerb, name, entry string) (proxy.PolicyChange, error) {
	event := audit.Event{Kind: audit.PolicyChange, Bottle: name, Action: v.action, Entry: entry}
	if err := a.auditLog().Write(event); err != nil {
		return proxy.PolicyChange{}, err
	}
	done := a.busy(textBusyPolicy, shownName(name))
	change, err := v.change(e.Proxies(), a.ctx, name, entry)
	done()
	if err == nil && !change.Changed {
		return change, nil
	}
	if event.Entries = change.Entries; err != nil {
		event.Error = err.Error()
	}
	if werr := a.auditLog().Write(event); werr != nil {
		return change, errors.Join(err, werr)
	}
	return change, err
}
