package plan

import (
	"cmp"
	"fmt"
	"net"
	"net/url"

	"github.com/bot-bottle/bottle/internal/hint"
)

// checkMCP checks that the agent's MCP servers can be configured, and that it can reach those on
// other hosts.
func (p *preparation) checkMCP() error {
	if k := p.plan.kind; len(p.agent.MCP) > 0 && k.MCP == nil {
		return &hint.Error{
			Err:  fmt.Errorf("unexpected mcp in agent %q: bottle does not know how %s configures servers", p.spec.Agent, k.Title),
			Hint: "remove mcp, and configure them in the image",
		}
	}
	var problems hint.Problems
	for _, s := range p.agent.MCP {
		u, err := url.Parse(s.URL)
		if err != nil {
			return err // the manifest was checked
		}
		if s.URL == "" || p.policyErr != nil {
			continue
		}
		port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
		if target := net.JoinHostPort(u.Hostname(), port); !p.allowsTarget(target) {
			problems.Add(&hint.Error{
				Err:  fmt.Errorf("agent %q cannot reach its MCP server %s at %s: not allowed by egress", p.spec.Agent, s.Name, target),
				Hint: fmt.Sprintf("add %s to egress.allow of bottle %q", u.Hostname(), p.agent.Bottle),
			})
		}
	}
	return problems.Err()
}
