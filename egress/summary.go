package egress

import (
	"cmp"
	"iter"
	"net"
	"net/url"
	"slices"
	"strings"
)

// Verdicts of an entry, as a user reads them.
const (
	VerdictAllowed = "allowed"
	VerdictRefused = "refused"
	VerdictLearnt  = "learnt" // let through, as a policy is being learnt
	VerdictFailed  = "failed" // allowed, and could not be reached
	VerdictClosed  = "closed" // the end of what was allowed
)

// Verdict is what became of the request that the entry is about; empty for the
// proxy's own affairs.
func (e Entry) Verdict() string {
	switch e.Event {
	case EventTunnelOpen, EventForward:
		return VerdictAllowed
	case EventTunnelClose:
		return VerdictClosed
	case EventWouldBlock:
		return VerdictLearnt
	case EventBlocked, EventSNIMismatch:
		return VerdictRefused
	case EventError:
		if e.Target != "" || e.URL != "" {
			return VerdictFailed
		}
	}
	return ""
}

// noHost is the destination of a request that names no host.
const noHost = "(no host)"

// Destination is host:port of the request that the entry is about; the URL
// itself where its host cannot be told.
func (e Entry) Destination() string {
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

// HostSummary is what was asked of one host and port.
type HostSummary struct {
	Destination string `json:"destination"`
	Requests    int    `json:"requests"` // all, also those refused or failed
	Bytes       int64  `json:"bytes"`    // both ways
	Refused     int    `json:"refused"`
	Learnt      int    `json:"learnt,omitempty"` // let through as a policy was being learnt
	// Scanner is what refused, or would have refused, the last of those.
	Scanner string `json:"scanner,omitempty"`
}

// maxSummary bounds how many hosts are told apart: an agent can ask for names
// without end. The rest is summed up as one.
const maxSummary = 1000

// summaryRest names that.
const summaryRest = "(others)"

// Summarize adds a log up by host and port: first those refused, then by bytes.
func Summarize(log iter.Seq2[Entry, error]) ([]HostSummary, error) {
	hosts := map[string]*HostSummary{}
	for e, err := range log {
		if err != nil {
			return nil, err
		}
		if verdict := e.Verdict(); verdict != "" {
			summaryFor(hosts, e.Destination()).add(e, verdict)
		}
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
	case VerdictLearnt: // its request has a line of its own
		h.Learnt++
		h.Scanner = e.Scanner
	}
}
