package provision

import (
	"fmt"
	"slices"
	"strings"

	"github.com/bot-bottle/bottle/agents"
	"github.com/bot-bottle/bottle/internal/hint"
)

// PromptFile is the path of the agent's prompt inside, if it has one. promptVar is the
// variable with that path, for any agent.
const (
	PromptFile = GuestDir + "/prompt"
	promptVar  = "BOTTLE_PROMPT_FILE"
)

// PromptOption adds the kind's option for the prompt to a command that runs its program;
// any other command is returned unchanged, and so is every command of a kind that reads
// its prompt from a file. The option comes first because what follows may be after a
// "--". The error says which option of the command conflicts.
func PromptOption(k *agents.Kind, command []string, prompt string) ([]string, error) {
	option := k.Prompt.Option
	if prompt == "" || option == "" || !k.Runs(command) {
		return command, nil
	}
	for _, arg := range command[1:] {
		name, _, _ := strings.Cut(arg, "=")
		if name == option || slices.Contains(k.Prompt.Conflicts, name) {
			return nil, &hint.Error{
				Err:  fmt.Errorf("the prompt conflicts with the option %s of the agent's command", name),
				Hint: "remove the prompt from the manifest, or the option from the command",
			}
		}
	}
	return slices.Insert(slices.Clone(command), 1, option, PromptFile), nil
}

func promptEnv(prompt string) []string {
	if prompt == "" {
		return nil
	}
	return []string{promptVar + "=" + PromptFile}
}
