// Package audit writes structured events of what bottle does for whom: to journald, to
// syslog, or to a file, as the system configuration says. Without that, [Open] returns a
// nil *Log, which writes nothing.
//
// An event is written before what it describes, so that a sink that fails can stop it. If
// what was announced fails afterwards, a second event with an error follows. The names of
// the fields are stable, and docs/hardening.md lists them. No event contains the value of
// a secret: secrets are named, and of a command only the program.
package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/bot-bottle/bottle/internal/hint"
)

// Targets other than a file's path.
const (
	Journald = "journald"
	Syslog   = "syslog"
)

// What happens when an event cannot be written.
const (
	Continue = "continue" // with a warning
	Stop     = "stop"     // what the event describes is refused
)

// Config says where events are written.
type Config struct {
	To        string `json:"to"`         // Journald, Syslog, or the absolute path of a file; empty: nowhere
	OnFailure string `json:"on_failure"` // Continue (default) or Stop
}

// CheckTarget checks a value of Config.To.
func CheckTarget(to string) (string, error) {
	if to != Journald && to != Syslog && (!filepath.IsAbs(to) || filepath.Clean(to) != to || to == "/") {
		return "", &hint.Error{Err: fmt.Errorf("%q is neither journald, syslog nor an absolute path", to), Hint: "write journald, syslog, or a path such as /var/log/bottle.log"}
	}
	return to, nil
}

// Kinds of events.
const (
	Start        = "start"         // a bottle is launched
	Session      = "session"       // a process is started in a bottle, or a session is attached to
	PolicyChange = "policy_change" // of a running bottle, by allow or deny
	SecretUse    = "secret_use"    // a bottle or a build gets a secret
	Signature    = "signature"     // the ssh agent of a bottle was asked for one
	Refusal      = "refusal"       // the administrator's policy refuses a request
	End          = "end"           // a bottle is stopped or removed, or its launch has failed
)

// Kinds are all kinds of events.
var Kinds = []string{Start, Session, PolicyChange, SecretUse, Signature, Refusal, End}

// Event is one event. Fields that do not apply are empty and not written.
type Event struct {
	Kind           string   `json:"event"`
	Bottle         string   `json:"bottle,omitempty"` // its ID
	Agent          string   `json:"agent,omitempty"`
	Manifest       string   `json:"manifest,omitempty"` // its path
	ManifestSHA256 string   `json:"manifest_sha256,omitempty"`
	Image          string   `json:"image,omitempty"`
	ImageDigest    string   `json:"image_digest,omitempty"`
	PolicySHA256   string   `json:"policy_sha256,omitempty"` // of the administrator's policy
	Runtime        string   `json:"runtime,omitempty"`
	Proxy          string   `json:"proxy,omitempty"`
	Program        string   `json:"program,omitempty"` // the first word of a command
	Action         string   `json:"action,omitempty"`  // exec, attach; allow, deny; removed, stopped, failed, suspended, resumed
	Entry          string   `json:"entry,omitempty"`   // of the egress policy
	Entries        []string `json:"entries,omitempty"` // that were changed
	Secret         string   `json:"secret,omitempty"`  // its name
	Source         string   `json:"source,omitempty"`  // of the secret
	Host           string   `json:"host,omitempty"`    // of a signature
	HostKey        string   `json:"host_key,omitempty"`
	Login          string   `json:"login,omitempty"` // user on that host
	Key            string   `json:"key,omitempty"`   // fingerprint
	Granted        *bool    `json:"granted,omitempty"`
	PolicyKey      string   `json:"policy_key,omitempty"` // that refuses
	Reason         string   `json:"reason,omitempty"`
	Error          string   `json:"error,omitempty"`
}

// record is an event with what all events have.
type record struct {
	Time     string  `json:"time"` // RFC 3339, UTC
	UID      int     `json:"uid"`  // the user that bottle works for
	SudoUser string  `json:"sudo_user,omitempty"`
	LoginUID *uint32 `json:"login_uid,omitempty"`
	PID      int     `json:"pid"`
	Command  string  `json:"command,omitempty"` // bottle's, without arguments
	Event
}

// Log writes events. It may be used concurrently. A nil *Log writes nothing.
type Log struct {
	cfg  Config
	who  Who
	sink sink
	warn func(error)
	once sync.Once
}

// sink writes records.
type sink interface {
	write(r *record, line []byte) error
}

// Open returns the log of a process; nil: none is configured. warn receives the first
// failure, if failures do not stop anything.
func Open(cfg Config, who Who, warn func(error)) *Log {
	if cfg.To == "" {
		return nil
	}
	l := &Log{cfg: cfg, who: who, warn: warn}
	switch cfg.To {
	case Journald:
		l.sink = journal{path: journalSocket}
	case Syslog:
		l.sink = syslog{path: syslogSocket, host: hostname()}
	default:
		l.sink = file{path: cfg.To}
	}
	return l
}

// Write writes an event. An error means that what it describes must not happen.
func (l *Log) Write(e Event) error {
	if l == nil {
		return nil
	}
	r := &record{
		Time: time.Now().UTC().Format("2006-01-02T15:04:05.000000Z07:00"), UID: l.who.UID, SudoUser: l.who.SudoUser,
		LoginUID: l.who.LoginUID, PID: os.Getpid(), Command: l.who.Command, Event: e,
	}
	r.clean()
	line, err := r.json()
	if err == nil {
		err = l.sink.write(r, line)
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("write the audit log to %s: %w", l.cfg.To, err)
	if l.cfg.OnFailure != Stop {
		l.once.Do(func() { l.warn(err) })
		return nil
	}
	return &hint.Error{Err: err, Hint: "ask root to repair the audit log: bottle refuses to work without it (audit.on_failure: stop)"}
}

// json returns the record as a line without its end.
func (r *record) json() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // for readers
	err := enc.Encode(r)
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), err
}

// Bounds of an event, part of which comes from agents and other hosts.
const (
	maxText    = 1024 // bytes
	maxEntries = 50
)

// clean bounds the texts of a record and escapes what is not printable.
func (r *record) clean() {
	for _, f := range fields(r) {
		switch v := f.value.Interface().(type) {
		case string:
			f.value.SetString(clean(v))
		case []string:
			out := make([]string, 0, min(len(v), maxEntries+1))
			for i, s := range v {
				if i == maxEntries {
					out = append(out, "…")
					break
				}
				out = append(out, clean(s))
			}
			if v != nil {
				f.value.Set(reflect.ValueOf(out))
			}
		}
	}
}

// clean returns a text that cannot be mistaken for another line, field or direction of
// writing.
func clean(s string) string {
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	if strings.IndexFunc(s, unprintable) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unprintable(r) {
			_, _ = fmt.Fprintf(&b, "<%U>", r)
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unprintable(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }

// message is a sentence for readers of a journal.
func (r *record) message() string {
	parts := []string{strings.ReplaceAll(r.Kind, "_", " ")}
	for _, part := range []string{r.Bottle, r.Action, r.Program, r.Entry, r.Secret, r.Host, r.Reason, r.Error} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	return fmt.Sprintf("%s (uid %d)", strings.Join(parts, ": "), r.UID)
}

// Severities of syslog, RFC 5424, section 6.2.1.
const (
	severityError   = 3
	severityWarning = 4
	severityInfo    = 6
)

// facility is authpriv (RFC 5424, section 6.2.1).
const facility = 10

func (r *record) severity() int {
	switch {
	case r.Error != "":
		return severityError
	case r.Kind == Refusal, r.Granted != nil && !*r.Granted:
		return severityWarning
	}
	return severityInfo
}
