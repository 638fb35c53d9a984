package egress

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// Events of pipelock that are not the built-in proxy's too. Those that are in
// neither list are shown as they are.
const (
	eventAllowed        = "allowed"        // a request to its /fetch endpoint
	eventInterceptHTTP  = "intercept_http" // a request in an intercepted tunnel
	eventWSOpen         = "ws_open"
	eventWSClose        = "ws_close"
	eventWSBlocked      = "ws_blocked"
	eventKillSwitchDeny = "kill_switch_deny"
	eventAirlockDeny    = "airlock_deny"
	eventHeaderDLP      = "header_dlp"
	eventBodyDLP        = "body_dlp"
	eventAgentListener  = "agent_listener"
)

// pipelockScanners maps pipelock's names of checks to the built-in proxy's where
// they check the same.
var pipelockScanners = map[string]string{
	"core_dlp": "dlp", "header_dlp": "dlp", "env_leak": "dlp", "core_ssrf": "ssrf", "ssrf_metadata": "ssrf",
	"blocklist": scannerDeny, "response_size": "length", "rate_limit": "ratelimit",
}

// pipelockLine adds to an entry what only pipelock logs, or logs in its own way.
func (e *Entry) pipelockLine(keys map[string]json.RawMessage) {
	if e.Method == http.MethodConnect && e.Target == "" { // 2.0
		e.Target, e.URL = e.URL, ""
	}
	if e.Method == "CONFIG_RELOAD" { // its URL is a file's name
		e.Method, e.URL = "", ""
	}
	if e.Event == "redirect" && e.URL == "" {
		e.URL = maskSecrets(maskURL(textOf(keys["original_url"])))
	}
	if e.Reason == "" {
		e.Reason = maskText(e.pipelockReason(keys))
	}
	if !knownEvents[e.Event] {
		e.Reason = strings.TrimSuffix("event "+bounded(e.Event, maxLogText)+": "+e.Reason, ": ")
	}
	e.Scanner = e.pipelockScanner()
	if e.Event == EventSNIMismatch {
		e.Scanner = "sni"
	}
	if _, entry, found := strings.Cut(e.Reason, " matches "); found && e.Scanner == scannerDeny && e.Rule == "" {
		e.Rule = entry
	}
}

// pipelockReason is why a line without a reason was logged.
func (e *Entry) pipelockReason(keys map[string]json.RawMessage) string {
	text := func(key string) string { return textOf(keys[key]) }
	for _, key := range []string{"error", "block_reason", "deny_message", "detail"} {
		if s := text(key); s != "" {
			return s
		}
	}
	found := strings.Join(append(textsOf(keys["patterns"]), textsOf(keys["findings"])...), ", ")
	switch {
	case e.Event == eventHeaderDLP:
		return fmt.Sprintf("the header %s contains a secret: %s", text("header"), found)
	case e.Event == eventBodyDLP:
		return "the request body contains a secret: " + found
	case found != "":
		return found
	case e.Event == "redirect":
		return "redirected to " + text("redirect_url")
	case e.Event == EventSNIMismatch && e.SNI != "":
		return fmt.Sprintf("the TLS handshake is for %q, CONNECT named %s", shorten(e.SNI), text("connect_host"))
	case e.Event == EventSNIMismatch:
		return "no TLS handshake that names " + text("connect_host") + " (" + text("category") + ")"
	case !knownEvents[e.Event]:
		return text("message")
	}
	return ""
}

// pipelockScanner is the check that an entry is about.
func (e *Entry) pipelockScanner() string {
	switch {
	case strings.HasPrefix(e.Reason, notAllowed), strings.Contains(e.Reason, " blocked: "+notAllowed):
		return "allowlist" // whatever name the proxy uses
	case strings.HasPrefix(e.Reason, "redirect blocked: "):
		return "redirect" // the refused destination has a line of its own
	case e.Scanner == "ssrf" && strings.Contains(e.Reason, "DNS resolution error"):
		return "dns"
	case e.Scanner == eventBodyDLP && !strings.Contains(e.Reason, "secret: "):
		return "body" // too large, compressed or malformed
	case e.Scanner == eventBodyDLP, e.Scanner == "" && (e.Event == eventHeaderDLP || e.Event == eventBodyDLP):
		return "dlp"
	}
	if name, ok := pipelockScanners[e.Scanner]; ok {
		return name
	}
	return e.Scanner
}

// textsOf are the texts of a JSON list.
func textsOf(raw json.RawMessage) []string {
	var list []any
	if json.Unmarshal(raw, &list) != nil {
		return nil
	}
	var out []string
	for _, v := range list[:min(len(list), 20)] {
		if s, ok := v.(string); ok {
			out = append(out, s)
		}
	}
	return slices.Compact(out)
}

// knownEvents are the events that have a meaning of their own here.
var knownEvents = map[string]bool{
	EventStartup: true, EventShutdown: true, EventReload: true, eventAgentListener: true,
	EventTunnelOpen: true, EventTunnelClose: true, EventBlocked: true,
	EventForward: true, EventForwardOpen: true, EventForwardClose: true,
	EventSNIMismatch: true, EventError: true, EventWouldBlock: true, EventProxyLimit: true,
	eventAllowed: true, eventInterceptHTTP: true, eventWSOpen: true, eventWSClose: true, eventWSBlocked: true,
	eventKillSwitchDeny: true, eventAirlockDeny: true, eventHeaderDLP: true, eventBodyDLP: true,
}
