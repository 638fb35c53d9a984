package egress

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"strings"
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
	case EventBlocked, EventSNIMismatch, EventWouldBlock:
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

// maskURL replaces possible secrets in a URL: the user info, every value of the
// query, and parameters without a name. It works on the text, because a refused
// URL may be invalid.
func maskURL(u string) string {
	u, _, _ = strings.Cut(u, "#")
	u, query, found := strings.Cut(u, "?")
	if scheme, rest, ok := strings.Cut(u, "://"); ok {
		authority, path, _ := strings.Cut(rest, "/")
		if i := strings.LastIndexByte(authority, '@'); i >= 0 {
			u = scheme + "://***@" + authority[i+1:] + "/" + path
		}
	}
	if !found {
		return u
	}
	return u + "?" + maskQuery(query)
}

var anyURL = regexp.MustCompile(`[A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>]+`)

// maskText applies maskURL to the URLs in a text, and maskSecrets to all of it.
func maskText(text string) string {
	return maskSecrets(anyURL.ReplaceAllStringFunc(text, maskURL))
}

// maskLine masks a line of any proxy's log: pipelock logs blocked URLs in clear
// text. Of a truncated JSON object the complete keys remain; anything but an
// object is masked as text.
func maskLine(text []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(text))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return []byte(maskText(string(text)))
	}
	out := []byte{'{'}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			break
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			break
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		name, _ := key.(string) // always a string
		out = append(append(append(out, quoted(maskText(name))...), ':'), maskValue(name, value)...)
	}
	return append(out, '}')
}

func maskValue(key string, value json.RawMessage) []byte {
	var text string
	switch {
	case json.Unmarshal(value, &text) != nil:
		return []byte(maskSecrets(string(value)))
	case key == "url" || key == "target":
		return quoted(maskSecrets(maskURL(text)))
	}
	return quoted(maskText(text))
}

func quoted(text string) []byte {
	data, _ := json.Marshal(text) // cannot fail for a string
	return data
}

func maskQuery(query string) string {
	var b strings.Builder
	for rest := query; rest != ""; {
		i := strings.IndexAny(rest, "&;")
		param, sep := rest, ""
		if i >= 0 {
			param, sep = rest[:i], rest[i:i+1]
		}
		rest = rest[len(param)+len(sep):]
		if key, _, ok := strings.Cut(param, "="); ok {
			b.WriteString(key + "=")
		}
		if param != "" {
			b.WriteString("***")
		}
		b.WriteString(sep)
	}
	return b.String()
}

func ptr[T any](v T) *T { return &v }
