package egress

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"strconv"
	"time"
)

// Entry is one line of a proxy's log, the built-in proxy's or pipelock's.
// Fields that are missing from the line or cannot be parsed are zero.
type Entry struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"`            // one of the Event constants, or an unknown one
	Target string    `json:"target,omitempty"` // host:port of a tunnel
	Method string    `json:"method,omitempty"`
	// URL of a plain request, with secrets masked.
	URL     string `json:"url,omitempty"`
	Scanner string `json:"scanner,omitempty"` // the check that refused it
	Reason  string `json:"reason,omitempty"`
	Rule    string `json:"rule,omitempty"`
	SNI     string `json:"sni,omitempty"` // the mismatching name in the TLS handshake
	// Action is what pipelock did about a finding: block, warn or another one.
	Action   string        `json:"action,omitempty"`
	Status   int           `json:"status,omitempty"`
	Bytes    int64         `json:"bytes,omitempty"`
	Duration time.Duration `json:"duration_ns,omitempty"`
	// RequestID is the same in all lines about one request; not every proxy has it.
	RequestID string `json:"request_id,omitempty"`
	// Version is the proxy's own, in the line of its start.
	Version string `json:"version,omitempty"`
	// Secrets are the names of the secrets that a request used or misused.
	Secrets []string `json:"secrets,omitempty"`
	// Refs are those that a request changes if it is a push of git's; hostrule.OtherRefs
	// among them stands for more.
	Refs []string `json:"refs,omitempty"`
	// SSH is the signature that the entry is about, if it is of the ssh agent's log.
	SSH *Signature `json:"ssh,omitempty"`
}

// Denied reports whether the entry is about a refused request.
func (e Entry) Denied() bool { return e.Verdict() == VerdictRefused }

// Before reports whether the entry was logged before t. Pipelock's times are whole
// seconds: an entry of the second that t is in is not before it.
func (e Entry) Before(t time.Time) bool {
	if e.Time.Nanosecond() == 0 {
		t = t.Truncate(time.Second)
	}
	return e.Time.Before(t)
}

// maxLine is the maximum length of a line, in bytes; longer ones are skipped.
const maxLine = 64 << 10

// ParseLog reads JSON lines and yields those with an event; everything else,
// such as a truncated line or a panic's stack trace, is skipped. A read error
// other than io.EOF is yielded last, with a zero Entry. Only one line is held in
// memory, so an endless log can be followed.
func ParseLog(r io.Reader) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		br := bufio.NewReaderSize(r, maxLine)
		for {
			text, err := readLine(br)
			if e, ok := parseEntry(text); ok && !yield(e, nil) {
				return
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					yield(Entry{}, err)
				}
				return
			}
		}
	}
}

// readLine returns the next line, valid until the next call; nil for a line that
// does not fit the reader's buffer.
func readLine(br *bufio.Reader) ([]byte, error) {
	text, err := br.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return text, err
	}
	for errors.Is(err, bufio.ErrBufferFull) {
		_, err = br.ReadSlice('\n')
	}
	return nil, err
}

// parseEntry decodes each key on its own, so that one value of an unexpected
// type does not discard the line. For a duplicate key the last value counts.
func parseEntry(text []byte) (Entry, bool) {
	text = bytes.TrimSpace(text)
	if len(text) == 0 || text[0] != '{' {
		return Entry{}, false
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		return Entry{}, false
	}
	e := Entry{
		Time:     timeOf(keys["time"]),
		Event:    textOf(keys["event"]),
		Target:   maskSecrets(maskURL(textOf(keys["target"]))),
		Method:   textOf(keys["method"]),
		URL:      maskSecrets(maskURL(textOf(keys["url"]))),
		Scanner:  textOf(keys["scanner"]),
		Reason:   maskText(textOf(keys["reason"])),
		Rule:     textOf(keys["rule"]),
		SNI:      maskSecrets(textOf(keys["sni_host"])),
		Status:   int(numberOf(keys["status_code"])),
		Action:   textOf(keys["action"]),
		Bytes:    int64(numberOf(keys["total_bytes"]) + numberOf(keys["size_bytes"])),
		Duration: millis(numberOf(keys["duration_ms"])),

		RequestID: bounded(textOf(keys["request_id"]), maxLogText),
		Version:   textOf(keys["version"]),
		Secrets:   textsOf(keys["secrets"]),
		Refs:      textsOf(keys["refs"]),
	}
	if e.Event == "" {
		return Entry{}, false
	}
	if e.Target == "" {
		e.Target = maskSecrets(textOf(keys["connect_host"]))
	}
	if !e.sshLine(keys) {
		e.pipelockLine(keys)
	}
	return e, true
}

func textOf(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// numberOf accepts numbers, quoted or not. It returns 0 for values beyond any
// real count of bytes or milliseconds.
func numberOf(raw json.RawMessage) float64 {
	f, err := strconv.ParseFloat(string(bytes.Trim(raw, `"`)), 64)
	const most = 1 << 52
	if err != nil || !(f >= 0 && f <= most) {
		return 0
	}
	return f
}

// millis is capped at the range of time.Duration.
func millis(ms float64) time.Duration {
	return time.Duration(min(ms, 1<<43) * float64(time.Millisecond))
}

// timeOf accepts RFC 3339, and seconds or milliseconds since 1970.
func timeOf(raw json.RawMessage) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, textOf(raw)); err == nil {
		return t.UTC()
	}
	n := numberOf(raw)
	switch {
	case n == 0:
		return time.Time{}
	case n > 1e11: // in seconds this would be after the year 5000
		return time.UnixMilli(int64(n)).UTC()
	}
	return time.UnixMilli(int64(n * 1000)).UTC()
}
