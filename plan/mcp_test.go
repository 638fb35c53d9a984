package plan

import "testing"

// TestMCP: an MCP server on a host needs that host to be allowed, and a kind must be known to have
// servers.
func TestMCP(t *testing.T) {
	const server = `mcp: {one: {command: [x]}, two: {url: "https://mcp.test:8443/x"}}`
	newScene(t, "egress: {allow: [mcp.test]}", server).bad("cannot reach its MCP server two at mcp.test:8443: not allowed by egress", "add mcp.test to egress.allow")
	if got := newScene(t, "egress: {allow: ['mcp.test:8443']}", server).good().Provisions().MCP; len(got) != 2 {
		t.Errorf("the agent gets %+v", got)
	}
	newScene(t, "image: mine", "kind: aider, mcp: {one: {command: [x]}}").bad("bottle does not know how Aider configures servers", "configure them in the image")
}
