package plan

import (
	"context"

	"github.com/bot-bottle/bottle/manifest"
)

// Reasons why a run uses no prepared bottle.
const (
	reasonDirectory = "the working directory is a part of the bottle"
	reasonName      = "the bottle's name is given"
	reasonProxy     = "only those with the built-in proxy are prepared"
	reasonLogins    = "login files are a part of the bottle"
	reasonImage     = "the image has to be provided first"
	reasonNone      = "none is ready for this run"
)

// prepared decides whether the run uses a prepared bottle, which then gives the run its
// name. What cannot be given to a bottle that is running makes the run a cold one.
func (p *preparation) prepared(ctx context.Context) error {
	if p.plan.Pool == 0 || p.spec.NamesOnly {
		return nil
	}
	p.plan.Prepared = &Prepared{}
	switch {
	case p.plan.Dir != "" || p.plan.Workspace != nil:
		p.plan.Prepared.Reason = reasonDirectory
	case p.plan.Pinned:
		p.plan.Prepared.Reason = reasonName
	case p.plan.Proxy.Kind != manifest.ProxyBuiltin:
		p.plan.Prepared.Reason = reasonProxy
	case len(p.plan.Logins) > 0:
		p.plan.Prepared.Reason = reasonLogins
	case p.plan.Pending():
		p.plan.Prepared.Reason = reasonImage
	case p.plan.Warm && p.plan.WarmObstacle() != "":
		p.plan.Prepared.Reason = p.plan.WarmObstacle()
	default:
		name, err := p.host.Prepared(ctx, p.plan)
		if err != nil {
			return err
		}
		if name == "" {
			p.plan.Prepared.Reason = reasonNone
			return nil
		}
		p.plan.Prepared.Name, p.plan.Name = name, name
	}
	return nil
}
