package plan

import "github.com/bot-bottle/bottle/internal/caller"

// CurrentCaller returns the user of this process, for Spec.Caller: under sudo, the user who ran
// sudo, whose files are read with their rights.
func CurrentCaller() caller.Caller { return caller.Current() }
