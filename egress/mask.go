package egress

import (
	"bytes"
	"encoding/json"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// What may be a secret is masked in all text of clients before it is logged: in
// URLs, in the targets of CONNECT, and in reasons that repeat a part of them.

const masked = "***"

// maskURL replaces possible secrets in a URL, or in another target of a request: the
// user info, every value of the query, parameters without a name, and the fragment.
// It works on the text, because a refused target may be invalid.
func maskURL(u string) string {
	u, _, _ = strings.Cut(u, "#")
	u, query, found := strings.Cut(u, "?")
	u = maskUserInfo(u)
	if !found {
		return u
	}
	return u + "?" + maskQuery(query)
}

// maskUserInfo replaces what comes before an @ in the authority of a URL, of a URL
// without a scheme (//user@host/), and of HOST:PORT. In a path an @ is ordinary.
func maskUserInfo(u string) string {
	start := 0
	if i := strings.Index(u, "://"); i >= 0 {
		start = i + len("://")
	}
	for start < len(u) && u[start] == '/' {
		start++
	}
	if start == 1 {
		return u // a path
	}
	prefix, rest := u[:start], u[start:]
	authority, path, _ := strings.Cut(rest, "/")
	if strings.Contains(path, "://") {
		path = maskUserInfo(path)
		rest = authority + "/" + path
	}
	if start > 0 && !splitPassword(authority) {
		if host, ok := cutUserInfo(authority); ok {
			return prefix + masked + "@" + host + "/" + path
		}
		return prefix + rest
	}
	host, ok := cutUserInfo(rest)
	switch {
	case !ok:
		return prefix + rest
	case start > 0 && !strings.Contains(host, "/"):
		host += "/"
	}
	return prefix + masked + "@" + host
}

// splitPassword reports whether an authority may be the beginning of a password with
// a slash in it: what follows the colon is not a port.
func splitPassword(authority string) bool {
	if _, ok := cutUserInfo(authority); ok || strings.HasPrefix(authority, "[") {
		return false
	}
	_, port, ok := strings.Cut(authority, ":")
	return ok && strings.Trim(port, "0123456789") != ""
}

// cutUserInfo returns what follows the last @, which may be escaped.
func cutUserInfo(s string) (host string, ok bool) {
	if i := strings.LastIndex(s, "%40"); i >= 0 && !strings.Contains(s[i:], "@") {
		return s[i+len("%40"):], true
	}
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		return s[i+1:], true
	}
	return s, false
}

// anyTarget matches what may be the target of a request, or a part of one.
var anyTarget = lazyregexp.New(`[^\s"<>]*(?:[@?#]|%40|://)[^\s"<>]*`)

// maskText applies maskURL to what may be a URL or a target in a text, and
// maskSecrets to all of it.
func maskText(text string) string {
	// The expression is slow, and matches nothing without one of these.
	if strings.ContainsAny(text, "@?#") || strings.Contains(text, "%40") || strings.Contains(text, "://") {
		text = anyTarget().ReplaceAllStringFunc(text, maskWord)
	}
	return maskSecrets(text)
}

func maskWord(word string) string {
	if strings.HasPrefix(word, "#") {
		return word // no fragment
	}
	return maskURL(word)
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
