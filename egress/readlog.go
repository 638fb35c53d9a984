package egress

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"strconv"
	"strings"
	"time"
)

// Entry is one line of a proxy's log, the built-in one's or pipelock's.
// Fields that the line does not have, or has in a form that cannot be read,
// are zero.
type Entry struct {
	Time   time.Time `json:"time"`
	Event  string    `json:"event"`            // one of the Event constants, or another proxy's own
	Target string    `json:"target,omitempty"` // host:port of a tunnel
	Method string    `json:"method,omitempty"`
	// URL of a plain request, its secrets masked.
	URL      string        `json:"url,omitempty"`
	Scanner  string        `json:"scanner,omitempty"` // what refused it
	Reason   string        `json:"reason,omitempty"`
	Rule     string        `json:"rule,omitempty"`
	SNI      string        `json:"sni,omitempty"` // the name that a mismatching client sent
	Status   int           `json:"status,omitempty"`
	Bytes    int64         `json:"bytes,omitempty"`
	Duration time.Duration `json:"duration_ns,omitempty"`
}

// Denied tells whether the entry is of a request that was refused.
func (e Entry) Denied() bool {
	return e.Event == EventBlocked || e.Event == EventSNIMismatch
}

// maxLine is the longest line that is read; longer ones are skipped.
const maxLine = 64 << 10

// ParseLog reads JSON lines and yields those that have an event; everything
// else, such as a line that was cut or a panic's trace, is skipped. An error
// of the reader is yielded last, with a zero Entry; its end is none. It holds
// one line at a time, so it can follow a log without end.
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

// readLine gives the next line, valid until the next call; nothing for one
// that does not fit the reader's buffer.
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

// parseEntry decodes key by key, as one key of a surprising type must not cost
// the line. Of a key that is there twice the last counts.
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
		Bytes:    int64(numberOf(keys["total_bytes"])),
		Duration: millis(numberOf(keys["duration_ms"])),
	}
	if strings.HasPrefix(e.Reason, notAllowed) {
		e.Scanner = "allowlist" // whatever another proxy calls it
	}
	if e.Target == "" {
		e.Target = maskSecrets(textOf(keys["connect_host"]))
	}
	return e, e.Event != ""
}

func textOf(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// numberOf takes numbers and numbers in quotes; 0 for what is beyond any real
// count of bytes or milliseconds.
func numberOf(raw json.RawMessage) float64 {
	f, err := strconv.ParseFloat(string(bytes.Trim(raw, `"`)), 64)
	const most = 1 << 52
	if err != nil || !(f >= 0 && f <= most) {
		return 0
	}
	return f
}

// millis stops at what a time.Duration can hold.
func millis(ms float64) time.Duration {
	return time.Duration(min(ms, 1<<43) * float64(time.Millisecond))
}

// timeOf takes RFC 3339 and seconds or milliseconds since 1970.
func timeOf(raw json.RawMessage) time.Time {
	if t, err := time.Parse(time.RFC3339Nano, textOf(raw)); err == nil {
		return t.UTC()
	}
	n := numberOf(raw)
	switch {
	case n == 0:
		return time.Time{}
	case n > 1e11: // in seconds that would be after the year 5000
		return time.UnixMilli(int64(n)).UTC()
	}
	return time.UnixMilli(int64(n * 1000)).UTC()
}
