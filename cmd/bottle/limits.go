package main

import (
	"fmt"
)

const (
	textLimitReached = "The bottle's limit of %s was reached."
	hintRaiseLimit   = "raise limits.%s in the manifest"
	hintLimitReached = "hint: " + hintRaiseLimit
	textKilled       = "The bottle was removed, or its sandbox was killed."
)

// reportEnd reports why a session ended, if it was not its command's own end. A nil
// session is one that has not ended.
func (a *app) reportEnd(s process) {
	if s == nil {
		return
	}
	limits := s.LimitsReached()
	for _, l := range limits {
		a.note(textLimitReached, limitText(string(l.Limit), l.Value))
		a.note(hintLimitReached, l.Limit)
	}
	if s.Killed() && len(limits) == 0 {
		a.note(textKilled)
	}
}

// limitText names a limit by its key in the manifest, with its value.
func limitText(limit string, value int64) string {
	if limit == "pids" {
		return fmt.Sprintf("%d processes", value)
	}
	return size(value) + " of " + limit
}
