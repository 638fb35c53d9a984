package egress

import (
	"encoding/json"
	"fmt"
	"time"
)

// Events of the ssh agent's log.
const (
	EventSSHSignature = "ssh_signature"
	EventSSHRefused   = "ssh_refused"
)

// Scanners of a refused signature.
const (
	ScannerSSH = "ssh"
	// ScannerSSHUnbound refuses a login only because it does not name the host's key.
	ScannerSSHUnbound = "ssh_unbound"
)

// methodSign is the method of an entry about a signature.
const methodSign = "sign"

// Signature is a requested signature of the ssh agent. The user, and of a refused one
// everything else, is chosen by the agent in the sandbox.
type Signature struct {
	Host      string `json:"host,omitempty"`     // the entry of the manifest; empty if unknown
	HostKey   string `json:"host_key,omitempty"` // fingerprint; empty if unknown
	User      string `json:"user,omitempty"`
	Key       string `json:"key,omitempty"` // fingerprint; empty if unknown
	HostBound bool   `json:"host_bound"`    // the login names the host's key
}

// sshLine is a line of the ssh agent's log. It has the keys of the proxy's lines where
// the meaning is the same.
type sshLine struct {
	Time    string `json:"time"`
	Event   string `json:"event"`
	Scanner string `json:"scanner,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Signature
}

// SSHLog is a log of the signatures of a bottle's ssh agent. It is bounded and rotated
// like the log of the bottle's proxy, from which it is separate: neither can push out
// the other's lines.
type SSHLog struct {
	file *logFile
	now  func() time.Time
}

// OpenSSHLog opens or creates the log at path.
func OpenSSHLog(path string) (*SSHLog, error) {
	f, err := openLogFile(path, maxLogSize)
	if err != nil {
		return nil, err
	}
	return &SSHLog{file: f, now: time.Now}, nil
}

// Granted logs a signature.
func (l *SSHLog) Granted(s Signature) error {
	return l.write(sshLine{Event: EventSSHSignature, Signature: s})
}

// Refused logs the refusal of a signature by one of the scanners.
func (l *SSHLog) Refused(s Signature, scanner, reason string) error {
	return l.write(sshLine{Event: EventSSHRefused, Scanner: scanner, Reason: reason, Signature: s})
}

func (l *SSHLog) write(ln sshLine) error {
	ln.Time = l.now().UTC().Format("2006-01-02T15:04:05.000Z07:00")
	for _, s := range []*string{&ln.Reason, &ln.Host, &ln.HostKey, &ln.User, &ln.Key} {
		*s = bounded(maskSecrets(*s), maxLogText)
	}
	data, err := json.Marshal(ln)
	if err != nil {
		return err // cannot happen: strings and a bool only
	}
	if err := l.file.write(append(escapeLine(data), '\n')); err != nil {
		return fmt.Errorf("write the log of ssh signatures: %w", err)
	}
	return nil
}

// Close closes the log.
func (l *SSHLog) Close() error { return l.file.file.Close() }

// sshLine completes an entry of the ssh agent's log, and reports whether it is one.
func (e *Entry) sshLine(keys map[string]json.RawMessage) bool {
	if e.Event != EventSSHSignature && e.Event != EventSSHRefused {
		return false
	}
	var s Signature
	for key, field := range map[string]*string{"host": &s.Host, "host_key": &s.HostKey, "user": &s.User, "key": &s.Key} {
		*field = bounded(maskSecrets(textOf(keys[key])), maxLogText)
	}
	_ = json.Unmarshal(keys["host_bound"], &s.HostBound) // false if it is missing
	e.SSH, e.Method = &s, methodSign
	return true
}

// destination returns what a signature is for, in the form of Entry.Destination.
func (s *Signature) destination() string {
	host := s.Host
	if host == "" {
		host = "(unlisted host)"
	}
	return "ssh:" + host
}
