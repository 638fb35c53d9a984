package bottle

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
)

// PromptFile is where the agent's prompt is inside, if it has one; promptVar
// tells agents that are no Claude Code.
const (
	PromptFile = guestDir + "/prompt"
	promptVar  = "BOTTLE_PROMPT_FILE"
)

// claudePrompt is Claude Code's option for the prompt, which takes a path.
const claudePrompt = "--append-system-prompt-file"

// promptOption hands Claude Code its prompt. The option stands first, as what
// follows may be behind a "--".
func (p *Plan) promptOption() error {
	command := p.Command
	if p.Prompt == "" || path.Base(command[0]) != "claude" {
		return nil
	}
	for _, arg := range command[1:] {
		name, _, _ := strings.Cut(arg, "=")
		if name == claudePrompt || name == strings.TrimSuffix(claudePrompt, "-file") {
			return &hint.Error{
				Err:  fmt.Errorf("agent %q has a prompt in the manifest, and its command has %s", p.Agent, name),
				Hint: "keep one of the two",
			}
		}
	}
	p.Command = slices.Insert(command, 1, claudePrompt, PromptFile)
	return nil
}

func promptEnv(prompt string) []string {
	if prompt == "" {
		return nil
	}
	return []string{promptVar + "=" + PromptFile}
}
