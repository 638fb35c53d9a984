package egress

import (
	"encoding/json"
	"io"
	"sync"
	"time"
	"unicode/utf8"
)

// Event names, as used by pipelock.
const (
	EventStartup     = "startup"
	EventTunnelOpen  = "tunnel_open"
	EventTunnelClose = "tunnel_close"
	EventForward     = "forward_http"
	EventBlocked     = "blocked"
	EventSNIMismatch = "sni_mismatch"
	EventError       = "error"
	EventWouldBlock  = "would_block" // allowed only because a policy is being learned
	EventReload      = "config_reload"
	EventShutdown    = "shutdown"
	// The built-in proxy logs a plain request before it is sent, and its end.
	EventForwardOpen  = "forward_open"
	EventForwardClose = "forward_close"
	// EventRequest is a request in a terminated tunnel, logged at its end, and EventEcho a
	// response to one that had a secret, which was replaced.
	EventRequest = "https_request"
	EventEcho    = "secret_echo"
	// EventProxyLimit is logged by whoever restarts a proxy that a limit has ended.
	EventProxyLimit = "proxy_limit"
)

// line is one line of the log. Pointer fields are written even if they are zero.
type line struct {
	Time        string   `json:"time"`
	Level       string   `json:"level"`
	Event       string   `json:"event"`
	Target      string   `json:"target,omitempty"`
	Method      string   `json:"method,omitempty"`
	URL         string   `json:"url,omitempty"`
	ConnectHost string   `json:"connect_host,omitempty"`
	SNIHost     string   `json:"sni_host,omitempty"`
	Scanner     string   `json:"scanner,omitempty"`
	Reason      string   `json:"reason,omitempty"`
	Rule        string   `json:"rule,omitempty"`
	Status      int      `json:"status_code,omitempty"`
	TotalBytes  *int64   `json:"total_bytes,omitempty"`
	DurationMS  *int64   `json:"duration_ms,omitempty"`
	Listen      string   `json:"listen,omitempty"`
	Mode        string   `json:"mode,omitempty"`
	Allow       []string `json:"allow,omitempty"`
	// Secrets are the names of the secrets that were inserted, misused or echoed.
	Secrets []string `json:"secrets,omitempty"`
	// Refs are those that a push changes.
	Refs []string `json:"refs,omitempty"`
}

// Limits of client-controlled text in a line, in bytes before escaping.
const (
	maxLogURL  = 2048
	maxLogText = 512
	// maxLogAllow is the maximum number of entries in the startup line.
	maxLogAllow = 256
)

// logger writes JSON lines, one Write each. It does not buffer: a slow reader of
// the log slows down requests, so that a flood does not consume memory and every
// refusal is logged.
type logger struct {
	mu  sync.Mutex
	w   io.Writer
	now func() time.Time
}

func newLogger(w io.Writer) *logger {
	return &logger{w: w, now: time.Now}
}

func (l *logger) log(ln line) {
	ln.Time = l.now().UTC().Format("2006-01-02T15:04:05.000Z07:00")
	ln.Level = level(ln.Event)
	ln.URL = bounded(maskSecrets(maskURL(ln.URL)), maxLogURL)
	for _, s := range []*string{&ln.Target, &ln.Method, &ln.ConnectHost, &ln.SNIHost, &ln.Reason, &ln.Rule} {
		*s = bounded(maskText(*s), maxLogText)
	}
	for i, ref := range ln.Refs {
		ln.Refs[i] = bounded(maskText(ref), maxLogText)
	}
	data, err := json.Marshal(ln)
	if err != nil {
		return // cannot happen: strings and numbers only
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// There is nowhere to report that the log cannot be written.
	_, _ = l.w.Write(append(data, '\n'))
}

func level(event string) string {
	switch event {
	case EventBlocked, EventSNIMismatch, EventWouldBlock, EventProxyLimit:
		return "warn"
	case EventError:
		return "error"
	}
	return "info"
}

// bounded truncates text to n bytes, at a character boundary.
func bounded(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

func ptr[T any](v T) *T { return &v }
