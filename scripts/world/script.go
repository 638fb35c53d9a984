package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// request holds the fields of a request that the mock uses.
type request struct {
	Model    string        `json:"model"`
	Stream   bool          `json:"stream"`
	Messages []turn        `json:"messages"`
	Tools    []requestTool `json:"tools"`
}

type requestTool struct {
	Name string `json:"name"`
}

type turn struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// content is a list of blocks. The API also accepts a string as a single text
// block.
type content []block

type block struct {
	Type string `json:"type"`
	Text string `json:"text"`
	// Content of a tool result.
	Content content `json:"content"`
}

// UnmarshalJSON implements json.Unmarshaler.
func (c *content) UnmarshalJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte(`"`)) {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
		*c = content{{Type: "text", Text: text}}
		return nil
	}
	return json.Unmarshal(data, (*[]block)(c))
}

func (c content) text() string {
	var texts []string
	for _, b := range c {
		if b.Type == "text" {
			texts = append(texts, b.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// lastUser returns the user's last turn. Turns of other roles may follow it.
func (r request) lastUser() turn {
	for _, t := range slices.Backward(r.Messages) {
		if t.Role == "user" {
			return t
		}
	}
	return turn{}
}

// toolResult returns the text of the turn's first tool result, if any.
func (t turn) toolResult() (string, bool) {
	for _, b := range t.Content {
		if b.Type == "tool_result" {
			return b.Content.text(), true
		}
	}
	return "", false
}

// defaultCommand is the command that the agent is asked to run.
const defaultCommand = "echo made-in-bottle > /workspace/proof.txt && cat /workspace/proof.txt"

// runPrefix marks a line of the prompt that contains another command.
const runPrefix = "RUN: "

// reply is the mock's response: a command for the Bash tool, or text.
type reply struct{ text, command string }

func (r reply) kind() string {
	if r.command != "" {
		return "tool_use"
	}
	return "text"
}

// script is the conversation: a command, then a text with the first line of its
// result. Other requests, such as one for the session's title, have no tools and
// get a short text.
func script(r request) reply {
	last := r.lastUser()
	if result, ok := last.toolResult(); ok {
		first, _, _ := strings.Cut(result, "\n")
		return reply{text: "TOOL-ROUND-DONE: " + first}
	}
	if !slices.ContainsFunc(r.Tools, func(t requestTool) bool { return t.Name == "Bash" }) {
		return reply{text: "A short answer"}
	}
	return reply{command: requestedCommand(last)}
}

// requestedCommand searches the prompt for runPrefix, except in reminders that
// the client adds.
func requestedCommand(t turn) string {
	for _, b := range t.Content {
		if b.Type != "text" || strings.HasPrefix(b.Text, "<system-reminder>") {
			continue
		}
		for line := range strings.Lines(b.Text) {
			if command, ok := strings.CutPrefix(strings.TrimRight(line, "\n"), runPrefix); ok {
				return command
			}
		}
	}
	return defaultCommand
}
