package hostrule

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
)

// push is the beginning of a push: the refs that it creates, changes or deletes, and the
// capabilities that it uses.
type push struct {
	refs         []string
	capabilities []string
}

var (
	shallowForm = lazyregexp.New(`\Ashallow (?:[0-9a-f]{40}|[0-9a-f]{64})\z`)
	commandForm = lazyregexp.New(`\A(?:[0-9a-f]{40} [0-9a-f]{40}|[0-9a-f]{64} [0-9a-f]{64}) (.+)\z`)
)

// knownCapabilities are those of a push that do not change which refs it is about. Push
// options are not: some servers merge into a branch because of one.
var knownCapabilities = []string{
	"report-status", "report-status-v2", "delete-refs", "quiet", "atomic", "ofs-delta", "side-band", "side-band-64k",
	"object-format", "agent", "session-id",
}

// checkPush decides about a push by all of its refs: git sends them in front of the pack.
func checkPush(r *http.Request, allowed func(ref string) bool) *Denial {
	var p push
	err := readHead(r, func(body io.Reader) (err error) {
		p, err = readPush(body)
		return err
	})
	reason := ""
	if err != nil {
		reason = fmt.Sprintf("the push cannot be checked: %v", err)
	} else {
		i := slices.IndexFunc(p.refs, func(ref string) bool { return !allowed(ref) })
		if i < 0 {
			return nil
		}
		reason = fmt.Sprintf("no rule for this host allows a push to %s", p.refs[i])
	}
	d := &Denial{Reason: reason, Status: http.StatusForbidden}
	if slices.Contains(p.capabilities, "report-status") || slices.Contains(p.capabilities, "report-status-v2") {
		body := r.Body
		d.Status = http.StatusOK
		d.Answer = func(w http.ResponseWriter) {
			// git reads the answer when it has sent everything.
			_, _ = io.Copy(io.Discard, body)
			p.refuse(w, reason)
		}
	}
	return d
}

// maxRefs is how many refs of a push are named.
const maxRefs = 16

// OtherRefs stands for refs of a push that are not named: there are too many, or the list
// cannot be read.
const OtherRefs = "..."

// PushRefs returns the refs that a request creates, changes and deletes if it is a push, and
// puts back what it has read.
func PushRefs(r *http.Request) []string {
	if r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/"+receivePack) {
		return nil
	}
	var p push
	err := readHead(r, func(body io.Reader) (err error) {
		p, err = readPush(body)
		return err
	})
	if err != nil || len(p.refs) > maxRefs {
		return append(p.refs[:min(len(p.refs), maxRefs)], OtherRefs)
	}
	return p.refs
}

// readPush reads up to the flush packet that ends the list of refs. The list of a push
// without refs may be empty: git sends one to learn whether it has to log in.
func readPush(r io.Reader) (push, error) {
	var p push
	for {
		data, ok, err := readPacket(r)
		if err != nil || !ok {
			return p, err
		}
		line := strings.TrimSuffix(string(data), "\n")
		if len(p.refs) == 0 && shallowForm().MatchString(line) {
			continue
		}
		if err := p.command(line); err != nil {
			return p, err
		}
	}
}

// command adds a command, the first of which has the capabilities.
func (p *push) command(line string) error {
	command, capabilities, found := strings.Cut(line, "\x00")
	if strings.HasPrefix(command, "push-cert") {
		return errors.New("it is signed: push without --signed")
	}
	m := commandForm().FindStringSubmatch(command)
	if m == nil {
		return errors.New("invalid command")
	}
	if err := checkRef(m[1]); err != nil {
		return err
	}
	if found && len(p.refs) > 0 {
		return errors.New("capabilities after the first command")
	}
	p.refs = append(p.refs, m[1])
	if !found {
		return nil
	}
	// Kept before they are checked: they say how to answer.
	p.capabilities = strings.Fields(capabilities)
	for _, c := range p.capabilities {
		name, _, _ := strings.Cut(c, "=")
		switch {
		case name == "push-options":
			return errors.New("it has push options: push without --push-option")
		case !slices.Contains(knownCapabilities, name):
			return fmt.Errorf("unknown capability %q", shorten(name))
		}
	}
	return nil
}

func shorten(s string) string { return s[:min(len(s), 80)] }

// checkRef applies the rules of git-check-ref-format(1), so that a name is the same for
// every server.
func checkRef(ref string) error {
	bad := strings.ContainsFunc(ref, func(c rune) bool { return c <= ' ' || c == 0x7f || strings.ContainsRune(`~^:?*[\`, c) }) ||
		!strings.HasPrefix(ref, "refs/") || strings.Contains(ref, "..") || strings.Contains(ref, "@{") || strings.HasSuffix(ref, ".") ||
		strings.ToValidUTF8(ref, "") != ref
	for _, segment := range strings.Split(ref, "/") {
		bad = bad || segment == "" || segment[0] == '.' || strings.HasSuffix(segment, ".lock")
	}
	if bad {
		return fmt.Errorf("invalid ref %q", shorten(ref))
	}
	return nil
}

// CheckRef returns an error for an entry of push that no ref can match.
func CheckRef(s string) error {
	if strings.Contains(s, "***") || checkRef(strings.ReplaceAll(s, "*", "x")) != nil {
		return fmt.Errorf("invalid ref %q: expected one such as refs/heads/bottle/*", s)
	}
	return nil
}

// refuse reports to git that no ref was changed (gitprotocol-pack(5), "Report Status").
func (p *push) refuse(w http.ResponseWriter, reason string) {
	var report strings.Builder
	report.WriteString(packet("unpack ok\n"))
	for _, ref := range p.refs {
		report.WriteString(packet("ng " + ref + " refused by bottle\n"))
	}
	report.WriteString(flush)
	w.Header().Set("Content-Type", "application/x-git-receive-pack-result")
	w.Header().Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	out := report.String()
	if slices.Contains(p.capabilities, "side-band-64k") {
		out = packet("\x02bottle: "+reason+"\n") + banded(out) + flush
	}
	_, _ = io.WriteString(w, out) // the client may have gone
}

// banded splits data into packets of the band for a report.
func banded(data string) string {
	const most = maxPacket - 5
	var b strings.Builder
	for len(data) > 0 {
		n := min(len(data), most)
		b.WriteString(packet("\x01" + data[:n]))
		data = data[n:]
	}
	return b.String()
}
