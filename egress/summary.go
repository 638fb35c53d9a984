package egress

import (
	"cmp"
	"iter"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/egress/hostrule"
)

// Verdicts of an entry, as shown to users.
const (
	VerdictAllowed = "allowed"
	VerdictRefused = "refused"
	VerdictLearned = "learned" // allowed only because a policy is being learned
	VerdictFailed  = "failed"  // allowed, but could not be reached
	VerdictClosed  = "closed"  // the end of an allowed tunnel
	VerdictSent    = "sent"    // a request in an allowed tunnel that is terminated
	VerdictNoted   = "noted"   // neither allowed nor refused, or an unknown event
)

// Verdict returns the outcome of the request that the entry is about; empty if
// it is not about a request.
func (e Entry) Verdict() string {
	switch e.Event {
	case EventTunnelOpen, EventForward, EventForwardOpen, eventAllowed, eventInterceptHTTP, eventWSOpen, EventSSHSignature:
		return VerdictAllowed
	case EventTunnelClose, EventForwardClose, eventWSClose:
		return VerdictClosed
	case EventRequest:
		return VerdictSent
	case EventWouldBlock:
		return VerdictLearned
	case EventBlocked, EventSNIMismatch, eventWSBlocked, eventKillSwitchDeny, eventAirlockDeny, EventSSHRefused:
		return VerdictRefused
	case EventError:
		if e.Target != "" || e.URL != "" {
			return VerdictFailed
		}
		return ""
	case EventStartup, EventShutdown, EventReload, eventAgentListener:
		return ""
	}
	// A finding: of a secret in a header or body, or of a kind that is not known.
	if e.Action == "block" {
		return VerdictRefused
	}
	return VerdictNoted
}

// noHost is the destination of a request without a host.
const noHost = "(no host)"

// Destination returns host:port of the request that the entry is about, or its
// URL if the URL cannot be parsed. For a signature of the ssh agent it is ssh: and the
// name of the host in the manifest.
func (e Entry) Destination() string {
	if e.SSH != nil {
		return e.SSH.destination()
	}
	if e.Target != "" {
		return e.Target
	}
	if e.URL == "" || strings.HasPrefix(e.URL, "/") {
		return noHost
	}
	u, err := url.Parse(e.URL)
	if err != nil || u.Host == "" {
		return e.URL
	}
	if u.Port() != "" {
		return u.Host
	}
	port := "80"
	if u.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// HostSummary adds up the requests to one host and port.
type HostSummary struct {
	Destination string `json:"destination"`
	Requests    int    `json:"requests"` // all, including refused and failed ones
	Bytes       int64  `json:"bytes"`    // both directions
	Refused     int    `json:"refused"`
	Learned     int    `json:"learned,omitempty"` // allowed only because a policy was being learned
	Sent        int    `json:"sent,omitempty"`    // requests in its tunnels, if they are terminated
	// Scanner is the check that refused, or would have refused, the last one.
	Scanner string `json:"scanner,omitempty"`

	sent *hostrule.Learner
}

// Rules returns rules that would allow the requests that were sent to the host, and few
// others; none if its tunnels are not terminated.
func (h HostSummary) Rules() []hostrule.Rule {
	host, err := ParseHost(h.Destination)
	if h.sent == nil || err != nil {
		return nil
	}
	return h.sent.Rules(strings.TrimSuffix(host, ":443"))
}

// maxSummary limits the number of destinations that are listed separately: an
// agent can request any number of names. The rest is added up as summaryRest.
const maxSummary = 1000

const summaryRest = "(others)"

// Summarize adds up a log by host and port, sorted by refusals, then by bytes.
func Summarize(log iter.Seq2[Entry, error]) ([]HostSummary, error) {
	hosts := map[string]*HostSummary{}
	var seen requests
	for e, err := range log {
		if err != nil {
			return nil, err
		}
		if e.Event == EventStartup {
			seen = requests{} // ids begin again
		}
		verdict := e.Verdict()
		if verdict == "" || verdict == VerdictNoted || seen.refusedBefore(e, verdict) {
			continue
		}
		summaryFor(hosts, e.Destination()).add(e, verdict)
	}
	out := make([]HostSummary, 0, len(hosts))
	for _, h := range hosts {
		out = append(out, *h)
	}
	slices.SortFunc(out, func(a, b HostSummary) int {
		return cmp.Or(cmp.Compare(b.Refused, a.Refused), cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Destination, b.Destination))
	})
	return out, nil
}

// maxRequests is how many requests back a second line about a refused one is
// recognized.
const maxRequests = 256

// requests are the latest refused requests, by their ids. Pipelock logs some of
// them twice: what it found and that it refused, or a redirect's target and source.
type requests struct {
	ids  [maxRequests]string
	next int
}

// refusedBefore reports whether an entry is about a request that was refused in an
// earlier one. A later tunnel or answer of the same request is not.
func (r *requests) refusedBefore(e Entry, verdict string) bool {
	if e.RequestID == "" || verdict != VerdictRefused && verdict != VerdictFailed {
		return false
	}
	if slices.Contains(r.ids[:], e.RequestID) {
		return true
	}
	if verdict == VerdictRefused {
		r.ids[r.next%maxRequests] = e.RequestID
		r.next++
	}
	return false
}

func summaryFor(hosts map[string]*HostSummary, destination string) *HostSummary {
	destination = strings.ToLower(destination)
	if hosts[destination] == nil && len(hosts) >= maxSummary {
		destination = summaryRest
	}
	if hosts[destination] == nil {
		hosts[destination] = &HostSummary{Destination: destination}
	}
	return hosts[destination]
}

func (h *HostSummary) add(e Entry, verdict string) {
	h.Bytes += e.Bytes
	switch verdict {
	case VerdictAllowed, VerdictFailed:
		h.Requests++
	case VerdictRefused:
		h.Requests++
		h.Refused++
		h.Scanner = e.Scanner
	case VerdictSent:
		h.Sent++
		if h.sent == nil {
			h.sent = &hostrule.Learner{}
		}
		h.sent.Add(e.Method, strings.TrimPrefix(e.URL, "https://"+e.Target), e.Status, e.Refs)
	case VerdictLearned: // the request itself has another line
		h.Learned++
		h.Scanner = e.Scanner
	}
}
