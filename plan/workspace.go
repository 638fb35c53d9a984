package plan

import "context"

// Resume describes the workspace of a stopped bottle, in which its agent runs again, under
// the bottle's name.
type Resume struct {
	Name     string
	Agent    string // in the manifest
	Manifest string // absolute path
	Dir      string // that was copied
	Target   string // in the bottle
	Runtime  string
	Size     int64 // of the workspace, in bytes
}

// workspace plans the storage of the copy of the working directory.
func (p *preparation) workspace(ctx context.Context) (err error) {
	switch {
	case p.spec.Resume != nil:
		p.plan.Workspace = &Workspace{Size: p.spec.Resume.Size, Existing: true}
	case p.spec.Cwd:
		limits, _, _ := p.spec.Rules.Limits(p.bottle.Limits, p.bottle.Limits.OrDefault()) // limits reports the error
		p.plan.Workspace = &Workspace{Size: limits.Workspace}
	default:
		return nil
	}
	p.workspaceWarnings, err = p.host.Workspace(ctx, p.plan.Workspace.Size)
	return err
}
