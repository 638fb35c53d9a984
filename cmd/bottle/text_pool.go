package main

import (
	"fmt"

	"github.com/bot-bottle/bottle/plan"
)

const (
	textPoolFillLong = `Prepare bottles until each agent has as many as pool says in the manifest, and remove
those that have died or that a run would not use any more, as after an update of the
image. Without an AGENT, the pools of all agents of the manifest are filled. A run that
uses a prepared bottle fills the pool again by itself.`
	textPoolEmpty  = "No prepared bottles."
	textPoolFilled = "%s: %s"
	textNoPools    = "no agent has a pool"
	hintNoPools    = "set pool in an agent of the manifest"
	hintPoolProxy  = "set proxy: {kind: builtin} in the bottle"
	hintPoolForms  = "set and export the variable of the value, or let bottle run fill the pool; or remove warm from the pool"
	hintPoolEnded  = "run it without a pool to see why: bottle run %s --name NAME"
	textPoolWarm   = ", agent started"
	hintPoolImage  = "provide the image with bottle run %s"

	textPrepared    = "yes; up to %d are kept for the agent%s"
	textNotPrepared = "no (%s); up to %d are kept for the agent%s"
	textWithAgent   = ", with it started"
)

// preparedText says whether the run of a plan uses a prepared bottle.
func preparedText(p *plan.Plan) string {
	warm := ""
	if p.Warm {
		warm = textWithAgent
	}
	if p.Prepared.Name != "" {
		return fmt.Sprintf(textPrepared, p.Pool, warm)
	}
	return fmt.Sprintf(textNotPrepared, p.Prepared.Reason, p.Pool, warm)
}
