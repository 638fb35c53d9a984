package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// request is what the mock reads of a request for a message.
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

// content is a list of blocks; the API takes a plain string for one of text.
type content []block

type block struct {
	Type string `json:"type"`
	Text string `json:"text"`
	// Content is a tool result's.
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

// lastUser is the last turn of the user. Turns of other roles may follow it.
func (r request) lastUser() turn {
	for _, t := range slices.Backward(r.Messages) {
		if t.Role == "user" {
			return t
		}
	}
	return turn{}
}

// toolResult returns the text of the turn's first tool result, if it has one.
func (t turn) toolResult() (string, bool) {
	for _, b := range t.Content {
		if b.Type == "tool_result" {
			return b.Content.text(), true
		}
	}
	return "", false
}

// defaultCommand is what the mock has the agent run.
const defaultCommand = "echo made-in-bottle > /workspace/proof.txt && cat /workspace/proof.txt"

// runPrefix at the start of a line of the prompt sets the command instead.
const runPrefix = "RUN: "

// reply is what the mock answers with: a command for the Bash tool, or a text.
type reply struct{ text, command string }

func (r reply) kind() string {
	if r.command != "" {
		return "tool_use"
	}
	return "text"
}

// script is the whole conversation: a command, then a word on its result. The
// requests beside it (a title for the session and so on) have no tools and get
// a short text.
func script(r request) reply {
	last := r.lastUser()
	if result, ok := last.toolResult(); ok {
		first, _, _ := strings.Cut(result, "\n")
		return reply{text: "TOOL-ROUND-DONE: " + first}
	}
	if !slices.ContainsFunc(r.Tools, func(t requestTool) bool { return t.Name == "Bash" }) {
		return reply{text: "A short answer"}
	}
	return reply{command: wantedCommand(last)}
}

// wantedCommand looks for runPrefix outside of the reminders that the client
// adds to the prompt.
func wantedCommand(t turn) string {
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
