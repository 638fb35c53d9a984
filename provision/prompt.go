package provision

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
)

// PromptFile is the path of the agent's prompt inside, if it has one. promptVar is the
// variable with that path, for agents other than Claude Code.
const (
	PromptFile = GuestDir + "/prompt"
	promptVar  = "BOTTLE_PROMPT_FILE"
)

// claudePrompt is Claude Code's option for the prompt, which takes a path.
const claudePrompt = "--append-system-prompt-file"

// PromptOption adds the option for the prompt to Claude Code's command; any other
// command is returned unchanged. The option comes first because what follows may be
// after a "--". The error says which option of the command conflicts.
func PromptOption(command []string, prompt string) ([]string, error) {
	if prompt == "" || path.Base(command[0]) != "claude" {
		return command, nil
	}
	for _, arg := range command[1:] {
		name, _, _ := strings.Cut(arg, "=")
		if name == claudePrompt || name == strings.TrimSuffix(claudePrompt, "-file") {
			return nil, &hint.Error{
				Err:  fmt.Errorf("the prompt conflicts with the option %s of the agent's command", name),
				Hint: "remove the prompt from the manifest, or the option from the command",
			}
		}
	}
	return slices.Insert(slices.Clone(command), 1, claudePrompt, PromptFile), nil
}

func promptEnv(prompt string) []string {
	if prompt == "" {
		return nil
	}
	return []string{promptVar + "=" + PromptFile}
}
