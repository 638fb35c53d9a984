package setup

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// packages are the Debian packages that provide a part, in order of preference, with the
// oldest suitable major version.
var debianPackages = []struct {
	part, name string
	major      int
}{
	{PartContainerd, "containerd", minContainerd},
	{PartContainerd, "containerd.io", minContainerd},
	{PartGVisor, "runsc", 0},
	{PartRunc, "runc", 1},
	{PartCNI, "containernetworking-plugins", 1},
}

// debianPlugins is where Debian's package has the CNI plugins.
const debianPlugins = "/usr/lib/cni"

var (
	candidate = lazyregexp.New(`(?m)^ *Candidate: (?:[0-9]+:)?([0-9][^\s]*)$`)
	// newPackage is a line of apt-get --simulate about a package that is not installed yet: an
	// installed one is followed by its version in brackets.
	newPackage = lazyregexp.New(`(?m)^Inst (\S+) \(`)
)

// packages plans the packages of the missing parts, as far as the package manager has them in a
// suitable version.
func (p *Plan) packages(ctx context.Context, h *host) error {
	if p.cfg.lookPath("apt-get") == "" {
		return &hint.Error{Err: errors.New("--packages needs apt-get, which this host does not have"), Hint: "use --from or --bundle"}
	}
	var names []string
	for _, d := range debianPackages {
		part := h.part(d.part)
		if part.Found != "" {
			continue
		}
		out, err := p.cfg.command(ctx, "apt-cache", "policy", d.name)
		m := candidate().FindStringSubmatch(string(out))
		if err != nil || m == nil || major(m[1]) < d.major {
			continue
		}
		part.Found, part.Source = fmt.Sprintf("package %s %s", d.name, m[1]), "package "+d.name
		names = append(names, d.name)
		switch d.part {
		case PartContainerd:
			h.startUnit = "containerd.service"
		case PartCNI:
			h.cniPath = debianPlugins
		}
	}
	if len(names) == 0 {
		return nil
	}
	out, err := p.cfg.command(ctx, "apt-get", append([]string{"install", "--simulate", "--yes", "--no-install-recommends"}, names...)...)
	if err != nil {
		return &hint.Error{Err: fmt.Errorf("apt-get install %s: %w: %s", strings.Join(names, " "), err, lastLine(out)), Hint: "apt-get update"}
	}
	var added []string
	for _, m := range newPackage().FindAllStringSubmatch(string(out), -1) {
		added = append(added, m[1])
	}
	p.step(Change{Action: ActionPackage, Target: strings.Join(names, " "), Detail: "new packages: " + strings.Join(added, ", ")},
		func(ctx context.Context, p *Plan) error {
			for _, name := range added {
				if err := p.rec.add(entry{Kind: kindPackage, Name: name}); err != nil {
					return err
				}
			}
			out, err := p.cfg.command(ctx, "apt-get", append([]string{"install", "--yes", "--no-install-recommends"}, names...)...)
			if err != nil {
				return fmt.Errorf("%w: %s", err, lastLine(out))
			}
			return nil
		})
	return nil
}
